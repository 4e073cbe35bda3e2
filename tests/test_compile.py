"""Compiled UNets: the same pictures, one graph for all sizes, and a machine that cannot compile."""

import pytest
import torch
import torch._dynamo

from cloudvid_stages.settings import SettingsError
from cloudvid_stages.speed import graphs_compiled
from support.stages import pixels, prompt, run


def test_no_compiler_is_said_at_load(load, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SettingsError, match=r"compile: full needs a C\+\+ compiler on this machine \(package g\+\+\)"):
        load("t2i", compile="full")


def test_compiled_blocks_make_the_same_picture_and_are_cached(load, plain, tmp_path):
    loaded = load("t2i", compile="regional", compile_cache=str(tmp_path), warm_up=["128x64"])
    code = list(tmp_path.rglob("*.so"))
    made, output = pixels("t2i", loaded)
    assert (made - plain["t2i"]).abs().max().item() <= 1e-3
    assert output.recipe["settings"] == {"compile": "regional"}
    assert code, "compiled code lies in the folder that was named"


def test_the_whole_unet_is_one_graph_for_all_sizes(load, plain, monkeypatch):
    compile_module = torch.nn.Module.compile
    # Graphs are traced as ever; only the minutes in which a C++ compiler works on them are left out.
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *args, **options: compile_module(*args, backend="eager", **options)
    )
    torch._dynamo.reset()
    loaded = load("t2i", compile="full", warm_up=["128x64"])
    before = graphs_compiled()
    made, output = pixels("t2i", loaded)
    assert (made - plain["t2i"]).abs().max().item() <= 1e-3
    for width, height in ((192, 128), (256, 192), (320, 128)):
        run(loaded, prompt(width=width, height=height, num_inference_steps=1))
    assert graphs_compiled() == before, "a new size is served by the graph that is there"
    assert output.recipe["settings"] == {"compile": "full"}
