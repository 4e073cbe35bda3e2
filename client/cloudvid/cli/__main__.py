"""`python -m cloudvid.cli`."""

from cloudvid.cli import main

main()
