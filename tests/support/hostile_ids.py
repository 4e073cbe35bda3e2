"""Scene ids that are made to do harm: each must be refused before anything is sent."""

import itertools

_DEVICES = ("con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(10)))
_ALLOWED = "._-"
_ASCII = [chr(code) for code in range(128) if not chr(code).isalnum() and chr(code) not in _ALLOWED]
_OTHERS = (
    "é",
    "e\u0301",
    "ﬁ",
    "\u212a",
    "\u0130",
    "\u0131",
    "\u017f",
    "ß",
    "Ａ",
    "１",
    "٣",
    "\u00a0",
    "\u2007",
    "\u200b",
    "\u200d",
    "\u202e",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\u2024",
    "\u2044",
    "\u2215",
    "\uff0f",
    "\uff3c",
    "\u29f5",
    "\u0085",
    "\u00ad",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\ud800",
    "\udfff",
    "😀",
    "\U000e0061",
    "漢",
    "я",
    "\u2010",
    "\u2212",
    "\u00b2",
    "\u0660",
)
_PATHS = (
    "/",
    "//",
    "/etc/passwd",
    "\\",
    "\\\\host\\share",
    "C:\\x",
    "C:x",
    "x:stream",
    "..",
    "../x",
    "x/..",
    "x/../../y",
    "./x",
    "..\\x",
    "....//x",
    "%2e%2e%2fx",
    "..%2f",
    "%00",
    "x%00.png",
    "~",
    "~root",
    "$HOME",
    "${HOME}",
    "`id`",
    "$(id)",
    ";id",
    "|id",
    "&id",
    "x\nid",
    "-rf",
    "--help",
    "-",
    ".",
    "...",
    ".hidden",
    "_x",
    "x y",
    " x",
    "x ",
    "\tx",
    "%s%n",
    "{0}",
    "{{7*7}}",
    "<script>",
    "'x",
    '"x',
    "x'--",
    "file:///etc/passwd",
    "http://127.0.0.1/",
    "\x1b[31mx",
    "\x1b]0;x\x07",
    "[PID]1",
    "[METRICS]x",
    "/proc/self/environ",
    "/dev/null",
    "a" * 101,
    "a" * 5000,
    "",
    "*",
    "?",
    "x*",
    "x<y",
    "x>y",
    "x|y",
    "x:y",
)


def hostile_ids() -> list[str]:
    """Six hundred and more, all different."""
    found = list(_PATHS)
    found += [
        before + letter + after
        for letter in (*_ASCII, *_OTHERS)
        for before, after in (("", "a"), ("a", "a"), ("a", ""))
    ]
    ends = ("", ".txt", ".tar.gz", "._-")
    found += [spelled + end for name in _DEVICES for spelled in (name, name.upper(), name.title()) for end in ends]
    found += [first + "a" for first in _ALLOWED]
    found += ["a" * length + "." * dots for length, dots in itertools.product((1, 50, 98), (1, 2))]
    return list(dict.fromkeys(found))
