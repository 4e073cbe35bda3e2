"""Fixtures: one real server for the whole run, with the tiny models, in a folder and on ports of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import archives
from deploy.torchserve import STAGES
from support import forked, prepare_process, servers
from support.servers import Running, running_server

pytest_plugins = ["pytester"]
prepare_process()


def pytest_sessionfinish() -> None:
    """End what the session started for all tests."""
    forked.end()


@pytest.hookimpl(tryfirst=True)  # before the lanes are shared out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: those that share a server come last, those that start one of their own at the end.

    Where there are two lanes (`make test`), one has all that a server takes part in and all slow ones, the other the
    rest.
    """
    shared = {"server", "noise_server"}

    def rank(item: pytest.Item) -> int:
        shares = bool(shared.intersection(getattr(item, "fixturenames", ())))
        return shares + 2 * bool(item.get_closest_marker("slow"))

    items.sort(key=rank)
    for item in items:
        if rank(item):
            item.add_marker(pytest.mark.xdist_group("servers"))


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory) -> Iterator[None]:
    """A configuration folder of the tests' own: no server of the developer's is found, and none of theirs is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, Path]:
    return servers.tiny_models()


@pytest.fixture(scope="session")
def load(tiny_models):
    """Loads a stage with its tiny model, and with settings, in this process."""
    from support import stages  # torch and diffusers take seconds to import: most tests need neither

    return lambda stage, **settings: stages.load(tiny_models[stage], stage, **settings)


@pytest.fixture(scope="session")
def plain(load):
    """Of each stage, the pixels that it makes of its request where no setting is changed."""
    from support import stages

    return {stage: stages.pixels(stage, load(stage))[0] for stage in stages.KINDS}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for stage in STAGES:
        archives.build(stage, store, "0")
    return store


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_models, model_store) -> Iterator[Running]:
    secrets = {"MY_SECRET": "canary", "CLOUDVID_TOKEN": "canary"}
    with running_server(tmp_path_factory.mktemp("run"), tiny_models, model_store, secrets) as running:
        yield running


@pytest.fixture(scope="session")
def noise_store(tmp_path_factory) -> Path:
    """Archives whose stages make noise: for tests of the server, whose workers then start in less than half the time."""
    from support.changed_archives import build, with_noise

    return build(tmp_path_factory.mktemp("noise"), with_noise)


@pytest.fixture(scope="session")
def noise_server(tmp_path_factory, noise_store) -> Iterator[Running]:
    with running_server(tmp_path_factory.mktemp("run"), dict.fromkeys(STAGES, Path("noise")), noise_store) as running:
        yield running
