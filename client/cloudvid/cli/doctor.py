"""The command `doctor`."""

import json as json_format
from collections import Counter
from pathlib import Path

import typer

from cloudvid.answers import plain
from cloudvid.cli.options import Json, OutputDir, takes_client
from cloudvid.client import Client
from cloudvid.doctor import Finding, Place, examine


@takes_client
def doctor(client: Client, output_dir: OutputDir = Path("output"), json: Json = False) -> None:
    """Look for what is wrong with this machine and the server; each finding comes with its remedy."""
    findings = []
    for finding in examine(Place(client, output_dir)):
        findings.append(finding)
        if not json:
            print(_text(finding), flush=True)
    if json:
        print(json_format.dumps({"findings": [finding.model_dump() for finding in findings]}))
    else:
        counts = Counter(finding.level for finding in findings)
        print(f"{_count(counts['problem'], 'problem')}, {_count(counts['note'], 'note')}")
    if code := exit_code(findings):
        raise typer.Exit(code)


def exit_code(findings: list[Finding]) -> int:
    """0 without a problem, 3 where the server takes no requests, 1 for any other problem."""
    problems = [finding for finding in findings if finding.level == "problem"]
    return 3 if any(finding.unavailable for finding in problems) else 1 if problems else 0


def _text(finding: Finding) -> str:
    text = f"{finding.level:<8} {finding.check}: {plain(finding.found)}"
    return f"{text}\n{'':<8} -> {finding.remedy}" if finding.remedy else text


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number != 1 else ''}"
