"""Train the demo pair, put it together, and judge it: `python -m demo COMMAND --help`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Carry out a command."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The demo pair.")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo/parts", help="of checkpoints and trained parts")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train every part that is not done, and write the pair to demo/models")
    text = "train only these parts, even if they are finished; does not write the pair"
    train.add_argument("parts", nargs="*", metavar="PART", help=text)
    text = "of training, earlier runs included: for all parts together (CPU: 480, GPU: 8), or for each PART"
    train.add_argument("--minutes", type=float, help=text)
    commands.add_parser("write", help="write the pair from its trained parts to demo/models")
    commands.add_parser("judge", help="train the judge, and write it to demo")
    evaluate = commands.add_parser("evaluate", help="judge the pair in demo/models; the figures go to demo/README.md")
    evaluate.add_argument("what", nargs="*", choices=["pictures", "clips"], metavar="WHAT", help="pictures, clips")
    evaluate.add_argument("--pictures", type=int, default=300)
    evaluate.add_argument("--size", type=_size, default=(512, 512), metavar="WIDTHxHEIGHT", help="of the pictures")
    evaluate.add_argument("--dtype", default="auto", help="of both models, as in the stages' settings")
    evaluate.add_argument("--clips", type=int, default=40)
    sheet = commands.add_parser("sheet", help="draw the pictures of the documents")
    sheet.add_argument("--output-dir", type=Path, help="of `make run`, whose files README shows")
    options = parser.parse_args()
    command = {"train": _train, "write": _write, "judge": _judge, "evaluate": _evaluate, "sheet": _sheet}
    return command[options.command](options)


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


# The processes that render import this module too, and have no use for torch.


def _train(options: argparse.Namespace) -> int:
    import torch

    from demo.training.loop import Interrupted
    from demo.training.parts import SHARES, Effort, train_part

    if unknown := [part for part in options.parts if part not in SHARES]:
        print(f"PART must be one of {', '.join(SHARES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    minutes = (8 if on_gpu else 480) if options.minutes is None else options.minutes
    try:
        for part in options.parts or SHARES:
            all_parts = minutes / SHARES[part] if options.parts and options.minutes is not None else minutes
            effort = Effort(torch.device("cuda" if on_gpu else "cpu"), all_parts)
            train_part(part, effort, options.folder, again=bool(options.parts))
    except (Interrupted, KeyboardInterrupt):
        print("interrupted: run the same command to continue", file=sys.stderr)
        return 130
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if options.parts else _write(options)


def _write(options: argparse.Namespace) -> int:
    from demo.pair import write_pair

    try:
        written = write_pair(options.folder)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    for stage, path in written.items():
        print(f"{stage}: {path}")
    return 0


def _judge(options: argparse.Namespace) -> int:
    from demo.training.judge import accuracy, train_judge

    judge = train_judge()
    judge.save()
    for name, share in accuracy(judge).items():
        print(f"{name:8} {share}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from demo.evaluation import evaluate_clips, evaluate_pictures, table

    rows = {
        "pictures": lambda: evaluate_pictures(options.pictures, options.size, options.dtype),
        "clips": lambda: evaluate_clips(options.clips, dtype=options.dtype),
    }
    for what in options.what or rows:
        _put(what, table(rows[what]()))
    return 0


def _put(what: str, text: str) -> None:
    """Replace a part of README.md that is written by this program."""
    readme = ROOT / "demo/README.md"
    before, begin, rest = readme.read_text().partition(f"<!-- {what}: written by python -m demo evaluate -->\n")
    _, end, after = rest.partition(f"<!-- end of {what} -->")
    readme.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")


def _sheet(options: argparse.Namespace) -> int:
    from demo.sheets import contact_sheet, strip

    contact_sheet(ROOT / "docs/images/demo_sheet.jpg")
    if options.output_dir:
        strip(options.output_dir, ROOT / "docs/images/first_run.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
