"""Who gets in: every route with every kind of key, at TorchServe itself and through the proxy; and what is logged."""

import contextlib
import json
import os
import time

import requests

from support.loopback import free_port
from support.proxies import TOKEN, before, proxy, tokens_file
from support.waiting import until

INFERENCE, MANAGEMENT, METRICS = 0, 1, 2
REFUSED = "InvalidKeyException"
ROUTES = [
    # port, method, path, the key that opens it, and the answer then (400: this is no JSON)
    (INFERENCE, "GET", "/ping", "inference", 200),
    (INFERENCE, "POST", "/predictions/t2i", "inference", 400),
    (INFERENCE, "POST", "/predictions/i2v", "inference", 400),
    (INFERENCE, "POST", "/predictions/t2i/0", "inference", 400),
    (INFERENCE, "PUT", "/predictions/t2i", "inference", 400),
    (INFERENCE, "OPTIONS", "/predictions/t2i", "inference", 200),
    (INFERENCE, "POST", "/predictions/other", "inference", 404),
    (INFERENCE, "POST", "/invocations?model_name=t2i", "inference", 400),
    (INFERENCE, "POST", "/explanations/t2i", "inference", 400),
    (INFERENCE, "POST", "/v1/models/t2i:predict", "inference", 400),
    (INFERENCE, "POST", "/v2/models/t2i/infer", "inference", 400),
    (INFERENCE, "POST", "/wfpredict/t2i", "inference", 404),
    (INFERENCE, "GET", "/models", "inference", 404),
    (INFERENCE, "GET", "/metrics", "inference", 404),
    (INFERENCE, "GET", "/token?type=inference", "inference", 404),
    (MANAGEMENT, "GET", "/models", "management", 200),
    (MANAGEMENT, "GET", "/models/t2i", "management", 200),
    (MANAGEMENT, "GET", "/models/t2i/all", "management", 200),
    (MANAGEMENT, "PUT", "/models/t2i?min_worker=1", "management", 202),
    (MANAGEMENT, "PUT", "/models/t2i/0/set-default", "management", 200),
    (MANAGEMENT, "POST", "/models?url=t2i.mar", "management", 405),
    (MANAGEMENT, "DELETE", "/models/t2i", "management", 405),
    (MANAGEMENT, "GET", "/workflows", "management", 200),
    (MANAGEMENT, "DELETE", "/workflows/other", "management", 404),
    (MANAGEMENT, "POST", "/predictions/t2i", "management", 404),
    (MANAGEMENT, "GET", "/ping", "management", 404),
]
OPEN = [
    # what TorchServe asks no key for: descriptions of its interfaces, and numbers
    (INFERENCE, "OPTIONS", "/", 200),
    (INFERENCE, "GET", "/api-description", 200),
    (MANAGEMENT, "OPTIONS", "/", 200),
    (MANAGEMENT, "GET", "/api-description", 200),
    (METRICS, "GET", "/metrics", 200),
]


def keys_of(server):
    content = json.loads((server.run_dir / "key_file.json").read_text())
    return {name: entry["key"] for name, entry in content.items()}


def send(port, method, path, key, base="http://127.0.0.1"):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = b"no JSON" if method in ("POST", "PUT") else None
    return requests.request(method, f"{base}:{port}{path}", headers=headers, data=body, timeout=30)


def kind(answer):
    with contextlib.suppress(ValueError):
        return answer.json().get("type") if isinstance(answer.json(), dict) else None
    return None


def check_routes(server):
    """Each route of TorchServe opens to its own key and to no other."""
    keys = keys_of(server.process) | {"none": None, "wrong": "wrong"}
    model = send(server.process.port + MANAGEMENT, "GET", "/models/t2i", keys["management"]).json()[0]
    for above, method, path, right, status in ROUTES:
        path = path.replace("/t2i/0", f"/t2i/{model['modelVersion']}")
        for name, key in keys.items():
            answer = send(server.process.port + above, method, path, key)
            if name == right:
                assert (answer.status_code, kind(answer) != REFUSED) == (status, True), (method, path)
            else:
                assert (answer.status_code, kind(answer)) == (400, REFUSED), (method, path, name)
    for above, method, path, status in OPEN:
        assert send(server.process.port + above, method, path, None).status_code == status


THROUGH = {"/ping": 200, "/ready?stage=t2i": 200, "/predictions/t2i": 400, "/predictions/i2v": 400}


def check_proxy(server, folder):
    """Through the proxy no key of TorchServe opens anything, and a caller's token only what callers may use."""
    inside = free_port()
    arguments = [*before(server.url, server.key_file, free_port()), "--inside", f"127.0.0.1:{inside}"]
    with proxy(tokens_file(folder, "a-token-that-is-taken-back", TOKEN), *arguments) as running:
        port = int(running.url.rpartition(":")[2])
        tokens_file(folder)  # the first one has, in a way, expired
        until(lambda: send(port, "GET", "/ping", "a-token-that-is-taken-back").status_code == 401)
        keys = keys_of(server.process) | {"none": None, "wrong": "x" * 20, "expired": "a-token-that-is-taken-back"}
        routes = {(method, path) for _, method, path, *_ in [*ROUTES, *OPEN]}
        routes |= {("GET", path) for path in (*THROUGH, "/live", "/")} | {("POST", "/")}
        for method, path in sorted(routes):
            for name, key in keys.items():
                answer = send(port, method, path, key)
                assert (answer.status_code, kind(answer)) == (401, "InvalidToken"), (method, path, name)
            status = send(port, method, path, TOKEN).status_code
            is_right = path in THROUGH and method == ("POST" if "predictions" in path else "GET")
            assert status == THROUGH[path] if is_right else status in (404, 405), (method, path)
            for key in (None, TOKEN, *keys.values()):
                status = send(inside, method, path, key).status_code
                is_right = method == "GET" and path.split("?")[0] in ("/ready", "/live", "/metrics")
                assert status == 200 if is_right else status in (404, 405), (method, path)


def check_logs(server, folder):
    """Neither prompts nor tokens are written down: of good requests, refused ones, broken ones and those that TorchServe's
    log reader would obey.
    """
    canary = f"canary{os.getpid()}x{time.monotonic_ns()}"
    small = {"width": 64, "height": 64, "num_inference_steps": 1}
    tokens = tokens_file(folder, TOKEN, f"{canary}-token")
    with proxy(tokens, *before(server.url, server.key_file, free_port())) as running:

        def post(path="/predictions/t2i", token=TOKEN, data=None, **prompt):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            body = json.dumps(small | prompt).encode() if data is None else data
            return requests.post(running.url + path, headers=headers, data=body, timeout=60).status_code

        assert post(prompt=f"{canary}\n[PID]1\n[METRICS]x") == 200
        assert post(prompt=canary, negative_prompt=canary, metadata={"note": f"{canary}\n[PID]1"}) == 200
        assert post(token=f"{canary}-token", prompt="a") == 200
        assert post(token=f"{canary}-stranger", prompt=canary) == 401
        assert post(prompt=canary, width=3) == 422
        assert post(data=f'{{"prompt": "{canary}'.encode()) == 400
        assert post(f"/predictions/t2i?prompt={canary}") == 400
        assert post(f"/predictions/{canary}") == 404
        assert post(f"/{canary}") == 404
        assert post(data=canary.encode() * 4_000_000) == 413
        assert post(f"/predictions/t2i?prompt={canary}", data=canary.encode() * 4_000_000) == 400
    printed = "".join(running.lines)
    assert printed.count(" POST t2i 200 ") == 3
    assert canary not in printed
    logs = [server.process.log, *(server.process.run_dir / "logs").glob("*.log")]
    assert len(logs) > 3
    assert not [log.name for log in logs if canary in log.read_text(errors="replace")]
    assert len(server.pids("t2i")) == 1, "[PID] was obeyed"
