"""Notes about files made by toy models."""

from collections.abc import Collection

from cloudvid_schema.protocol import DEMO_MODEL, TINY_MODEL

_NOTES = {
    DEMO_MODEL: (
        "made by the demo models, toys that know a lighthouse, boat, house, tree, balloon, bird and dragon; "
        "PROFILE=real uses the real models"
    ),
    TINY_MODEL: "made by the tiny models, whose weights are random: noise, to test machinery with",
}


def toy_note(models: Collection[str]) -> str | None:
    """What to say about files that these models made, or None if none of them is a toy."""
    notes = [note for name, note in _NOTES.items() if any(model.startswith(name) for model in models)]
    return "; some are ".join(notes) or None
