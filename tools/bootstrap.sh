#!/usr/bin/env bash
# Installs what is missing on a fresh Debian 12: system packages, a virtual environment, the package itself
# with its compiled eBPF object. Run again, it finds everything in place and ends in a moment.
set -euo pipefail
cd "$(dirname "$0")/.."

# clang, llvm: the eBPF object · libbpf-dev: its headers and the loader · gcc, libc6-dev: the network benchmark
# iproute2: tools people use to look around in the lab · clang-format: the C style check
packages=(clang llvm clang-format libbpf-dev libc6-dev linux-libc-dev gcc make iproute2 procps)
python=${PYTHON:-}
stamp=.venv/.installed

find_python() {
	local candidate
	for candidate in ${python:-python3.11 python3}; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	echo "Python 3.11 or newer is missing: install python3, or name one with PYTHON=..." >&2
	exit 1
}

install_system_packages() {
	local missing=() package
	for package in "${packages[@]}"; do
		dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
	done
	"$1" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
	[ ${#missing[@]} -eq 0 ] && return
	if [ "$(id -u)" -ne 0 ]; then
		echo "These system packages are missing: ${missing[*]}. Run this once as root." >&2
		exit 1
	fi
	echo "Installing system packages: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	local log
	log=$(mktemp)
	if ! { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "The system packages could not be installed: see the lines above." >&2
		exit 1
	fi
	rm -f "$log"
}

# What the installation depends on: when it is the same as last time there is nothing to do.
fingerprint() {
	cat requirements.lock pyproject.toml tools/build_hook.py tools/bootstrap.sh | sha256sum | cut -d' ' -f1
	pwd
}

found=$(find_python)
install_system_packages "$found"
if [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint)" ]; then
	[ -x .venv/bin/python ] || "$found" -m venv .venv
	echo "Installing Python packages into .venv"
	.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	echo "Compiling the eBPF object and installing Cilia"
	.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	fingerprint >"$stamp"
fi
make --silent -C bpf
