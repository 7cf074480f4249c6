"""The messages of Hubble's API, generated from `proto/` by `tools/protogen.py`; never edited.

Belongs here: generated modules and stubs only. Imports nothing else of Cilia.
"""
