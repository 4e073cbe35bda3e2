"""One fuzzer: `python -m soak.fuzz bodies|pictures [CORPUS ...] [libFuzzer's options]`, with client, handlers and tests
on PYTHONPATH.
"""

import resource
import sys

import atheris

with atheris.instrument_imports(include=["cloudvid_schema", "cloudvid_stages", "PIL"]):
    from soak.targets import TARGETS

_ADDRESS_SPACE = 8 * 2**30


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]][0])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
