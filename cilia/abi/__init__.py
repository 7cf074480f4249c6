"""The layouts of bpf/abi as Python sees them: dtypes, enums, map specs, read from the object's own BTF.

Belongs here: the reader of the compiled object (ELF sections, BTF) and what it yields. Does not: loading,
system calls, any number typed a second time. Nothing is kept in sync by hand: the object is the source.
"""

from cilia.abi.layout import LAYOUT, Layout, MapSpec, ObjectMissing, layout, object_path, read

__all__ = ["LAYOUT", "Layout", "MapSpec", "ObjectMissing", "layout", "object_path", "read"]
