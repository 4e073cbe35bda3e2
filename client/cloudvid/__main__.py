"""`python -m cloudvid`."""

from cloudvid.cli import main

main()
