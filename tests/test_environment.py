"""The environment of a server: misspelt settings are refused, and no secret reaches TorchServe."""

import subprocess
import sys

import pytest

from cloudvid.cli.options import _SERVER_OPTIONS
from cloudvid_stages.settings import SETTINGS
from deploy import DeployError
from deploy.environment import check_names, settings_names
from deploy.torchserve import Server
from support import ROOT
from support.command_line import clean_environment


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CLOUDVID_I2V_DTPYE", "CLOUDVID_I2V_DTPYE is not known; did you mean CLOUDVID_I2V_DTYPE?"),
        ("CLOUDVID_T2I_MAX_STEP", "CLOUDVID_T2I_MAX_STEP is not known; did you mean CLOUDVID_T2I_MAX_STEPS?"),
        ("CLOUDVID_TOKEN_FILE", "CLOUDVID_TOKEN_FILE is not known; did you mean CLOUDVID_TOKENS_FILE?"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(name, message):
    with pytest.raises(DeployError) as raised:
        check_names({name: "1"})
    assert str(raised.value).startswith(message)


def test_make_start_refuses_a_misspelt_setting_at_once(tmp_path):
    command = [sys.executable, "-m", "deploy.server", "start", "--run-dir", str(tmp_path / "run"), "--profile", "demo"]
    environment = clean_environment() | {"CLOUDVID_I2V_DTPYE": "bf16", "CLOUDVID_T2I_MAX_STEP": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "CLOUDVID_I2V_DTYPE?" in done.stderr
    assert "CLOUDVID_T2I_MAX_STEPS?" in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_variable_that_somebody_reads_is_known():
    names = {str(option.annotation.__metadata__[0].envvar) for option in _SERVER_OPTIONS}
    assert len(names) == 7
    settings = {f"CLOUDVID_{stage}_{name}".upper() for stage, kind in SETTINGS.items() for name in kind.model_fields}
    assert settings_names() == settings
    links = {"CLOUDVID_T2I_SERVICE_HOST", "CLOUDVID_I2V_PORT_8443_TCP_ADDR", "CLOUDVID_PORT", "CLOUDVID_I2V_PORT"}
    names |= settings | links | {"CLOUDVID_TOKENS_FILE"}
    check_names(dict.fromkeys(names, "x") | {"CLOUDVID_UNSET": "", "OTHER": "x"})


NOT_INHERITED = """HF_TOKEN HF_TOKEN_PATH hf_token HUGGING_FACE_HUB_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY WANDB_API_KEY
DB_PASSWD GITHUB_PAT DATABASE_URL MY_PASSPHRASE GOOGLE_APPLICATION_CREDENTIALS SSH_AUTH_SOCK https_proxy CLOUDVID_TOKEN
CLOUDVID_TOKENS_FILE CLOUDVID_KEY_FILE CLOUDVID_T2I_URL TS_INFERENCE_ADDRESS TMP METRICS_LOCATION"""
NEEDED = """PATH HOME LANG LC_ALL LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES HF_HOME HF_HUB_OFFLINE CXX
XDG_CACHE_HOME OMP_NUM_THREADS TORCHINDUCTOR_CACHE_DIR PYTORCH_CUDA_ALLOC_CONF IMAGEIO_FFMPEG_EXE CLOUDVID_T2I_DTYPE
TOKENIZERS_PARALLELISM PYTHONHASHSEED MALLOC_ARENA_MAX"""


def test_torchserve_inherits_what_it_needs_and_no_secret(tmp_path, monkeypatch):
    for name in [*NOT_INHERITED.split(), *NEEDED.split()]:
        monkeypatch.setenv(name, "canary")
    environment = Server(tmp_path, 20_000)._environment(tmp_path)
    assert {name for name, value in environment.items() if value == "canary"} == set(NEEDED.split())
