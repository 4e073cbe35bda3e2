"""CloudVid's parameters and wire protocol, written once and packed into the client and both model archives.

This package imports only pydantic and the standard library.
"""

__version__ = "0.1.0"
