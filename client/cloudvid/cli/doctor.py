"""The command `doctor`."""

import json as json_format
from collections import Counter
from pathlib import Path

import typer

from cloudvid.cli.options import Json, OutputDir, takes_client
from cloudvid.client import Client
from cloudvid.endpoints.answers import plain
from cloudvid.server.doctor import Finding, Place, examine_place


@takes_client
def doctor(client: Client, output_dir: OutputDir = Path("output"), json: Json = False) -> None:
    """Find out what is wrong with this machine and the server, and how to fix it."""
    findings = []
    for finding in examine_place(Place(client.server, output_dir)):
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
    """0 without problems, 3 if the server takes no requests, 1 for other problems."""
    problems = [finding for finding in findings if finding.level == "problem"]
    return 3 if any(finding.unavailable for finding in problems) else 1 if problems else 0


def _text(finding: Finding) -> str:
    text = f"{finding.level:<8} {finding.check}: {plain(finding.found)}"
    return f"{text}\n{'':<8} -> {finding.remedy}" if finding.remedy else text


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number != 1 else ''}"
