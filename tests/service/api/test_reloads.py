"""Versions come and go while requests run: none of them fails, and none meets another version's memory."""

import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from carousel.models.errors import BundleError
from carousel.service.keys.key_file import key_line, new_key
from carousel.service.observability.metrics import RETIRED_VERSIONS

ADMIN = "an admin key of at least 32 characters"
LONG = 60_000
FIRST, SECOND = 1, 2


@pytest.fixture(scope="module")
def versions(tiny_bundle, tiny_tracing_bundle, make_bundle, tmp_path_factory):
    """Two versions of `tiny` with other weights, and a tracing model. To be copied."""
    repository = tmp_path_factory.mktemp("versions")
    shutil.copytree(tiny_bundle.parent, repository / "tiny")
    shutil.copytree(tiny_tracing_bundle.parent, repository / "tutor")
    assert make_bundle(repository, "tiny", seed=3).name == str(SECOND)
    return repository


@pytest.fixture
def repository(versions, tmp_path):
    """A repository whose `tiny` has one version; `publish` adds the second."""
    shutil.copytree(versions, tmp_path / "repository")
    (tmp_path / "repository" / "tiny" / str(SECOND)).rename(tmp_path / "second")
    return tmp_path / "repository"


@pytest.fixture
def publish(repository, tmp_path):
    """Publishes the second version of `tiny`, as whatever number."""

    def rename(number=SECOND):
        shutil.copytree(tmp_path / "second", tmp_path / "staging")
        (tmp_path / "staging").rename(repository / "tiny" / str(number))

    return rename


@pytest.fixture
def live(run_server, repository):
    """A server of that repository, with an admin key."""
    with run_server(repository=repository, admin_key=ADMIN, shutdown_grace_seconds=0) as server:
        yield server


@pytest.fixture
def admin(live):
    """An HTTP client that has the admin key."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def load(admin):
    """Loads a version of `tiny`, the newest where none is given; gives the one served then."""

    def post(version=None, model="tiny"):
        body = None if version is None else {"version": version}
        response = admin.post(f"/v1/repository/models/{model}/load", json=body)
        assert response.status_code == 200, response.text
        return response.json()["version"]

    return post


def served(admin) -> dict[str, int]:
    return {model["id"]: model["version"] for model in admin.get("/v1/models").json()["data"]}


def value(live, name, **labels):
    return live.context.metrics.registry.get_sample_value(f"carousel_{name}", {key: str(labels[key]) for key in labels})


def test_running_stream_ends_on_its_version_and_the_next_begins_on_the_new_one(
    live, admin, load, publish, connect, eventually
):
    whole = connect(live).generate("abc", seed=7, max_tokens=300)
    publish()
    running, socket = connect(live), connect(live)
    assert socket.generate("abc", seed=7, max_tokens=300)[1:] == whole[1:]
    endless = connect(live)
    endless.start("abc", max_tokens=LONG)
    assert endless.receive()["version"] == FIRST
    running.start("abc", seed=7, max_tokens=300)
    first = [running.receive()]
    assert load() == SECOND
    assert first + running.rest() == [whole[0] | {"request_id": first[0]["request_id"]}, *whole[1:]]
    for stream in (socket, connect(live)):
        events = stream.generate("abc", seed=7, max_tokens=300)
        assert events[0]["version"] == SECOND
        assert events[1:] != whole[1:]
    tiny = next(model for model in admin.get("/v1/repository").json()["models"] if model["model"] == "tiny")
    assert (tiny["published"], tiny["served"], tiny["ending"]) == ([FIRST, SECOND], SECOND, [FIRST])
    assert value(live, "rows", model="tiny", version=FIRST, state="active") == 1
    assert value(live, "rows", model="tiny", version=SECOND, state="active") == 0
    endless.send(type="cancel")
    assert endless.rest()[-1]["reason"] == "cancelled"
    eventually(lambda: not live.context.repository.retiring)
    assert value(live, "rows", model="tiny", version=FIRST, state="active") is None
    assert value(live, "model_load_seconds", model="tiny", version=FIRST) is None
    assert value(live, "model_reloads_total", model="tiny", result="ok") == 1
    assert value(live, "step_rows_count", model="tiny", version=FIRST) > 0  # what is not scraped yet is not lost
    assert load() == SECOND
    assert value(live, "model_reloads_total", model="tiny", result="ok") == 1  # it was served already


def test_memory_of_another_version_is_refused_until_it_is_back(live, admin, load, publish, connect, refused):
    body = {"text": "abc", "session": "ada", "return_state": True}
    answer = admin.post("/v1/models/tiny/next-token", json=body).json()
    expected = admin.post("/v1/models/tiny/next-token", json={"text": "d", "state": answer["state"]}).json()
    stream, other = connect(live), connect(live)
    for one in (stream, other):
        one.generate("abc", max_tokens=3)
    publish()
    assert load() == SECOND
    for memory in ({"session": "ada"}, {"state": answer["state"]}):
        response = admin.post("/v1/models/tiny/next-token", json={"text": "d", **memory})
        refused(response, 409, "model_mismatch")
    stream.start("d", kind="feed")
    error, code = stream.refusal()
    assert (error["code"], code) == ("model_mismatch", 4409)
    assert load(FIRST) == FIRST
    assert other.generate("d", kind="feed", max_tokens=2)[0]["version"] == FIRST
    assert admin.post("/v1/models/tiny/next-token", json={"text": "d", "session": "ada"}).json() == {
        name: value for name, value in (expected | {"session": "ada"}).items() if name != "state"
    }


def test_bad_version_is_refused_and_the_old_one_goes_on(live, admin, publish, repository, refused, caplog):
    publish()
    graph = repository / "tiny" / str(SECOND) / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    message = refused(admin.post("/v1/repository/models/tiny/load"), 422, "bundle_refused")
    assert "step.onnx" in message
    assert f"version {FIRST} goes on" in message
    assert served(admin) == {"tiny": FIRST, "tutor": 1}
    assert admin.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}).status_code == 200
    tiny = admin.get("/v1/repository").json()["models"][0]
    assert (tiny["served"], tiny["refused"]["version"]) == (FIRST, SECOND)
    assert value(live, "model_reloads_total", model="tiny", result="refused") == 1
    assert value(live, "step_rows_count", model="tiny", version=SECOND) is None
    for path, code in (("tiny/load", "unknown_version"), ("nobody/load", "unknown_model"), ("../load", "not_found")):
        refused(admin.post(f"/v1/repository/models/{path}", json={"version": 9}), 404, code)
    refused(admin.post("/v1/repository/models/nobody/unload"), 404, "unknown_model")
    refused(admin.post("/v1/repository/models/tiny/load", json={"version": 0}), 422, "invalid_request")
    for body in (b'{"version": ' + b"[" * 100_000, b'{"version": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
        headers = {"content-type": "application/json"}
        response = admin.post("/v1/repository/models/tiny/load", content=body, headers=headers)
        refused(response, 400, "malformed_json")


def test_start_on_a_bad_newest_version_serves_the_one_before(run_server, repository, publish, tmp_path, refused):
    for number in (SECOND, 3):
        publish(number)
        graph = repository / "tiny" / str(number) / "step.onnx"
        whole = graph.read_bytes()
        graph.write_bytes(whole[:-1])
    with (
        run_server(repository=repository, admin_key=ADMIN) as live,
        httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {ADMIN}"}, trust_env=False) as admin,
    ):
        assert served(admin) == {"tiny": FIRST, "tutor": 1}
        assert admin.get("/readyz").status_code == 200
        tiny = admin.get("/v1/repository").json()["models"][0]
        assert (tiny["served"], tiny["refused"]["version"]) == (FIRST, 3)
        assert "step.onnx" in tiny["refused"]["reason"]
        assert [value(live, "model_refused", model=name) for name in ("tiny", "tutor")] == [1, 0]
        assert admin.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}).status_code == 200
        refused(admin.post("/v1/repository/models/tiny/load"), 422, "bundle_refused")
        graph.write_bytes(whole)
        _caller(live)(live.context.reloads.look())
        assert served(admin)["tiny"] == 3
        assert value(live, "model_refused", model="tiny") == 0
        assert admin.get("/v1/repository").json()["models"][0]["refused"] is None


def test_start_goes_on_without_a_model_that_has_no_good_version(run_server, repository, publish, refused, caplog):
    publish()
    for number in (FIRST, SECOND):
        (repository / "tiny" / str(number) / "manifest.json").write_text(f"[{number}]")
    with (
        run_server(repository=repository, admin_key=ADMIN) as live,
        httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {ADMIN}"}, trust_env=False) as admin,
    ):
        assert served(admin) == {"tutor": 1}
        assert [value(live, "model_refused", model=name) for name in ("tiny", "tutor")] == [1, 0]
        tiny = admin.get("/v1/repository").json()["models"][0]
        assert (tiny["served"], tiny["refused"]["version"]) == (None, SECOND)
        assert len([one for one in caplog.records if "tiny version" in one.getMessage()]) == 2
        refused(admin.post("/v1/repository/models/tiny/load"), 422, "bundle_refused")


def test_start_with_nothing_to_serve_fails_with_the_newest_reasons(run_server, repository, publish):
    publish()
    for path in repository.glob("*/*/manifest.json"):
        path.write_text("[]")
    loop = repository / "newone"
    loop.symlink_to(loop)
    with pytest.raises(BundleError) as error:
        run_server(repository=repository).__enter__()
    told = str(error.value)
    assert told.startswith(f"nothing in {repository} can be served; newone: the directory {loop} cannot be listed (")
    assert "; tiny version 2: manifest.json" in told
    assert "; tutor version 1: manifest.json" in told


def dangling(path):
    path.symlink_to(path.with_name("nowhere"))


def looping(path):
    path.symlink_to(path)


def a_file(path):
    path.write_bytes(b"not a directory")


def a_pipe(path):
    os.mkfifo(path)


def empty(path):
    path.mkdir()


@pytest.mark.parametrize("make", [dangling, looping, a_file, a_pipe, empty])
def test_bad_version_stops_no_look_at_others(live, admin, repository, make, refused):
    call = _caller(live)
    make(repository / "tiny" / str(SECOND))
    shutil.copytree(repository / "tutor" / "1", repository / "tutor" / "2")
    for _ in range(2):
        call(live.context.reloads.look())
    assert served(admin) == {"tiny": FIRST, "tutor": 2}
    assert value(live, "model_refused", model="tiny") == 1
    assert value(live, "model_reloads_total", model="tiny", result="refused") == 1
    tiny, tutor = admin.get("/v1/repository").json()["models"]
    assert (tiny["refused"]["version"], tutor["refused"]) == (SECOND, None)
    refused(admin.post("/v1/repository/models/tiny/load"), 422, "bundle_refused")
    assert admin.post("/v1/repository/models/tutor/load").status_code == 200


def test_model_directory_that_cannot_be_listed_is_refused_and_hides_no_other(
    live, admin, repository, publish, refused, caplog
):
    call, loop = _caller(live), repository / "newone"
    loop.symlink_to(loop)  # which root cannot list either
    publish()
    for _ in range(2):
        call(live.context.reloads.look())
    assert served(admin) == {"tiny": SECOND, "tutor": 1}
    assert value(live, "model_refused", model="newone") == 1
    assert len([one for one in caplog.records if one.getMessage().startswith("newone cannot be served")]) == 1
    found = {model["model"]: model for model in admin.get("/v1/repository").json()["models"]}
    assert found["newone"]["refused"]["version"] is None
    assert "cannot be listed" in found["newone"]["refused"]["reason"]
    assert (found["newone"]["published"], found["newone"]["served"]) == ([], None)
    assert "cannot be listed" in refused(admin.post("/v1/repository/models/newone/load"), 422, "bundle_refused")
    assert admin.post("/v1/repository/models/tutor/load").status_code == 200
    assert admin.post("/v1/repository/models/tutor/unload").status_code == 200
    loop.unlink()
    shutil.copytree(repository / "tutor", loop)
    call(live.context.reloads.look())
    assert served(admin) == {"tiny": SECOND, "newone": 1}
    assert value(live, "model_refused", model="newone") == 0


def test_directory_of_a_served_model_may_become_unreadable_and_come_back(live, admin, repository, tmp_path):
    call, home = _caller(live), repository / "tiny"
    home.rename(tmp_path / "aside")
    home.symlink_to(home)
    call(live.context.reloads.look())
    assert served(admin)["tiny"] == FIRST
    assert value(live, "model_refused", model="tiny") == 1
    home.unlink()
    (tmp_path / "aside").rename(home)
    call(live.context.reloads.look())
    assert value(live, "model_refused", model="tiny") == 0


def test_look_loads_the_newest_version_that_can_be_loaded(live, admin, repository, publish):
    call = _caller(live)
    for number in (SECOND, 3, 4):
        publish(number)
    manifests = {number: repository / "tiny" / str(number) / "manifest.json" for number in (3, 4)}
    content = manifests[4].read_bytes()
    for manifest in manifests.values():
        manifest.write_bytes(b"[]")
    for _ in range(2):
        call(live.context.reloads.look())
        assert served(admin)["tiny"] == SECOND
        assert value(live, "model_refused", model="tiny") == 1
        assert admin.get("/v1/repository").json()["models"][0]["refused"]["version"] == 4
    assert value(live, "model_reloads_total", model="tiny", result="refused") == 2
    manifests[3].write_bytes(content)
    call(live.context.reloads.look())
    assert served(admin)["tiny"] == 3
    assert admin.get("/v1/repository").json()["models"][0]["refused"]["version"] == 4
    manifests[4].write_bytes(content)
    call(live.context.reloads.look())
    assert served(admin)["tiny"] == 4
    assert value(live, "model_refused", model="tiny") == 0


def test_repository_that_is_gone_is_told_once(run_server, repository, eventually, caplog):
    with run_server(repository=repository, watch_seconds=0.01) as server:
        shutil.rmtree(repository)
        looks = []
        look = server.context.reloads.look

        async def counted():
            looks.append(1)
            await look()

        server.context.reloads.look = counted
        eventually(lambda: len(looks) > 5)
        assert set(server.context.repository.models) == {"tiny", "tutor"}
    told = [one for one in caplog.records if "could not be looked at" in one.getMessage()]
    assert len(told) == 1
    assert told[0].exc_info is None


UNREADABLE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""What takes root's right to read everything away."""


@pytest.mark.skipif(bool(UNREADABLE) and shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_directories_of_another_user_stop_neither_the_start_nor_the_watch(repository, tmp_path, eventually):
    """The server as a process of its own, on directories that it may not enter."""
    hidden = [repository / "tiny" / "7", repository / "aaa"]
    for path in hidden:
        path.mkdir(mode=0o700)
        if UNREADABLE:
            os.chown(path, 65534, 65534)
        else:
            path.chmod(0)
    settings = {"CAROUSEL_REPOSITORY": str(repository), "CAROUSEL_PORT": "0", "CAROUSEL_WATCH_SECONDS": "0.05"}
    command = [*UNREADABLE, sys.executable, "-m", "service"]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, stderr=log, env=os.environ | settings | {"CAROUSEL_ADMIN_KEY": ADMIN})
    try:
        eventually(lambda: child.poll() is not None or b"ready on" in (tmp_path / "log").read_bytes())
        assert child.poll() is None, (tmp_path / "log").read_text()
        url = re.search(r"ready on (http://\S+)", (tmp_path / "log").read_text())[1]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}, trust_env=False) as admin:
            assert served(admin) == {"tiny": FIRST, "tutor": 1}
            shutil.copytree(repository / "tutor" / "1", tmp_path / "2")
            (tmp_path / "2").rename(repository / "tutor" / "2")
            eventually(lambda: served(admin)["tutor"] == 2)
            metrics = admin.get("/metrics").text
            for name, refused in (("aaa", 1), ("tiny", 1), ("tutor", 0)):
                assert f'carousel_model_refused{{model="{name}"}} {refused}.0' in metrics
            found = {model["model"]: model["refused"] for model in admin.get("/v1/repository").json()["models"]}
            assert found["aaa"]["version"] is None
            assert "Permission denied" in found["aaa"]["reason"]
            assert found["tiny"]["version"] == 7
            assert "Permission denied" in found["tiny"]["reason"]
    finally:
        child.terminate()
        child.wait(30)
        for path in hidden:
            path.chmod(0o700)


def test_reload_of_a_version_that_was_deleted_is_refused_and_what_is_served_goes_on(live, admin, repository, refused):
    shutil.rmtree(repository / "tiny")
    for body in (None, {"version": FIRST}):
        refused(admin.post("/v1/repository/models/tiny/load", json=body), 404, "unknown_model")
    (repository / "tiny" / str(SECOND)).mkdir(parents=True)  # somebody has begun to copy
    refused(admin.post("/v1/repository/models/tiny/load", json={"version": FIRST}), 404, "unknown_version")
    refused(admin.post("/v1/repository/models/tiny/load"), 422, "bundle_refused")
    assert served(admin)["tiny"] == FIRST
    assert admin.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}).status_code == 200
    assert value(live, "model_refused", model="tiny") == 1
    assert admin.post("/v1/repository/models/tiny/unload").status_code == 200
    assert value(live, "model_refused", model="tiny") == 0


def test_unloaded_model_is_not_served_and_can_be_loaded_again(live, admin, load, refused, repository, eventually):
    shutil.rmtree(repository / "tutor")
    body = {"attempts": [{"skill": 0, "correct": True}]}
    assert admin.post("/v1/models/tutor/trace", json=body).status_code == 200  # what is served is in memory
    assert admin.post("/v1/repository/models/tutor/unload").json()["version"] is None
    refused(admin.post("/v1/models/tutor/trace", json=body), 404, "unknown_model")
    assert admin.get("/readyz").status_code == 200
    assert admin.post("/v1/repository/models/tiny/unload").status_code == 200
    assert admin.get("/readyz").status_code == 503
    assert admin.get("/livez").status_code == 200
    assert load() == FIRST
    assert admin.get("/readyz").status_code == 200


@pytest.fixture
def no_collection():
    """What circles hold stays where it is."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_nothing_of_a_version_is_left_behind(live, load, publish, connect, eventually, raw_client):
    publish()
    connect(live).generate("abcabc", max_tokens=3)
    cache = live.context.repository.models["tiny"].prefixes._cache
    first = live.context.repository.models["tiny"].bundle.digest
    assert any(scope.model == first for scope in cache._roots)
    gone = []
    for number in range(RETIRED_VERSIONS + 2):
        assert load(SECOND + number) == SECOND + number
        assert connect(live).generate("abcabc", max_tokens=3)[0]["version"] == SECOND + number
        for fields in ({}, {"stream": True}, {"n": 2, "stream": True}, {"logprobs": 2}):
            body = {"model": "tiny", "prompt": "abcabc", "max_tokens": 9, **fields}
            assert httpx.post(f"{live.url}/v1/completions", json=body, trust_env=False).status_code == 200
        for leaver in (raw_client(live), raw_client(live)):
            leaver.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": LONG, "stream": True})
            leaver.socket.recv(1000)
            leaver.reset()
        vanishing = raw_client(live)
        vanishing.upgrade("/v1/models/tiny/stream")
        vanishing.frame({"type": "start", "prompt": "a", "sampling": {"max_tokens": LONG}})
        vanishing.socket.recv(1000)
        vanishing.reset()
        waiting = raw_client(live)
        waiting.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": LONG})
        eventually(lambda: live.context.repository.models["tiny"].engine.describe().running > 0)
        waiting.reset()
        assert httpx.post(f"{live.url}/v1/models/tiny/score", json={"text": "abc"}, trust_env=False).status_code == 200
        gone.append(weakref.ref(live.context.repository.models["tiny"].engine._thread.core._runner._session))
        publish(SECOND + number + 1)
    eventually(lambda: not live.context.repository.retiring)
    assert not any(scope.model == first for scope in cache._roots)
    samples = [one for metric in live.context.metrics.registry.collect() for one in metric.samples]
    found = {one.labels["version"] for one in samples if one.labels.get("model") == "tiny" and "version" in one.labels}
    newest = SECOND + RETIRED_VERSIONS + 1
    assert found == {str(newest - back) for back in range(RETIRED_VERSIONS + 1)}
    assert len([one for one in samples if one.name == "carousel_queue_depth"]) == 2
    assert [reference() is None for reference in gone] == [True] * (len(gone) - 1) + [False]  # without a collection


def test_watcher_loads_what_is_published_and_nothing_twice(
    run_server, repository, publish, admin, live, eventually, load, caplog
):
    reloads = live.context.reloads
    call = _caller(live)

    def reloads_total(result):
        return value(live, "model_reloads_total", model="tiny", result=result)

    call(reloads.look())
    assert served(admin) == {"tiny": FIRST, "tutor": 1}
    publish()
    call(reloads.look())
    assert served(admin)["tiny"] == SECOND
    assert load(FIRST) == FIRST
    call(reloads.look())
    assert served(admin)["tiny"] == FIRST  # looking does not undo a rollback
    publish(3)
    manifest = repository / "tiny" / "3" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-5])
    for _ in range(3):
        call(reloads.look())
    assert reloads_total("refused") == 1
    assert len([record for record in caplog.records if "version 3 cannot be served" in record.getMessage()]) == 1
    manifest.write_bytes(content)
    call(reloads.look())
    assert served(admin)["tiny"] == 3
    shutil.rmtree(repository)
    with pytest.raises(BundleError, match="is not a directory"):
        call(reloads.look())
    assert served(admin) == {"tiny": 3, "tutor": 1}


def test_version_whose_bytes_change_is_two_engines_and_one_gauge(live, load, tmp_path, repository, connect, eventually):
    endless = connect(live)
    endless.start("abc", max_tokens=LONG)
    assert endless.receive()["version"] == FIRST
    shutil.rmtree(repository / "tiny" / str(FIRST))
    shutil.copytree(tmp_path / "second", repository / "tiny" / str(FIRST))
    before = live.context.repository.models["tiny"]
    assert load(FIRST) == FIRST
    model = live.context.repository.models["tiny"]
    assert model.bundle.digest != before.bundle.digest
    assert value(live, "rows", model="tiny", version=FIRST, state="active") == 1
    assert value(live, "rows", model="tiny", version=FIRST, state="free") == 15
    endless.send(type="cancel")
    assert endless.rest()[-1]["reason"] == "cancelled"
    eventually(lambda: not live.context.repository.retiring)
    assert value(live, "rows", model="tiny", version=FIRST, state="free") == 8
    samples = [one for metric in live.context.metrics.registry.collect() for one in metric.samples]
    told = [
        one.labels["digest"] for one in samples if one.name == "carousel_model_info" and one.labels["model"] == "tiny"
    ]
    assert told == [model.bundle.digest]
    connect(live).generate("abc", max_tokens=2)


def test_model_that_appears_is_loaded_and_one_that_broke_is_opened_anew(live, admin, load, repository, tmp_path):
    shutil.copytree(tmp_path / "second", repository / "fresh" / "5")
    assert load(model="fresh") == 5
    assert admin.post("/v1/completions", json={"model": "fresh", "prompt": "abc"}).status_code == 200
    broken = live.context.repository.models["tiny"]
    broken.engine._failure = "the device is gone"
    assert admin.get("/readyz").status_code == 503
    assert load() == FIRST
    assert live.context.repository.models["tiny"] is not broken
    assert admin.get("/readyz").status_code == 200
    assert admin.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}).status_code == 200


def test_request_whose_body_arrives_during_a_reload_runs_on_the_new_version(
    live, admin, load, repository, picture, captioner, eventually
):
    captioner.publish(repository, "scenes")
    captioner.publish(repository, "scenes")
    assert load(FIRST, model="scenes") == FIRST
    parts = httpx.Request("POST", live.url, files={"image": ("photo", picture())})
    content, kind = parts.read(), parts.headers["content-type"]
    path, reloaded = f"{live.url}/v1/models/scenes/captions", []

    def body():
        yield content[:-9]
        reloaded.append(load(SECOND, model="scenes"))
        eventually(lambda: not live.context.repository.retiring)
        yield content[-9:]

    response = httpx.post(path, content=body(), headers={"content-type": kind}, timeout=60, trust_env=False)
    assert reloaded == [SECOND]
    assert (response.status_code, response.json()["version"]) == (200, SECOND)


def test_watcher_runs_by_itself(run_server, repository, publish, eventually, admin):
    with run_server(repository=repository, watch_seconds=0.01) as server:
        publish()
        eventually(lambda: server.context.repository.models["tiny"].bundle.version == SECOND)
        assert httpx.get(f"{server.url}/v1/repository", trust_env=False).status_code == 404  # there is no admin key


def test_reloads_under_load_fail_no_request(live, load, publish, connect, eventually):
    publish()
    stop, counts = [], []

    def stream():
        socket = connect(live)
        while not stop:
            counts.append(socket.generate("abc", max_tokens=40)[-1]["reason"])

    def post():
        with httpx.Client(base_url=live.url, timeout=60, trust_env=False) as client:
            while not stop:
                response = client.post("/v1/completions", json={"model": "tiny", "prompt": "abcd", "max_tokens": 9})
                counts.append(response.status_code)
                answer = client.post("/v1/models/tutor/trace", json={"attempts": [{"skill": 0, "correct": True}]})
                counts.append(answer.status_code)

    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(one) for one in (stream, stream, post, post)]
        try:
            for number in range(10):
                assert load(SECOND if number % 2 == 0 else FIRST) == (SECOND if number % 2 == 0 else FIRST)
        finally:
            stop.append(True)
        for one in work:
            one.result()
    assert set(counts) == {"length", 200}
    eventually(lambda: not live.context.repository.retiring)


KEYS = [({}, 401, "missing_key"), *((header, 403, "admin_key_needed") for header in (
    {"Authorization": f"Bearer {ADMIN[:-1]}"},
    {"Authorization": f"Bearer {ADMIN} "[:-2]},
    {"Authorization": "Bearer x"},
))]  # fmt: skip


@pytest.mark.parametrize(("headers", "status", "code"), KEYS)
def test_repository_asks_for_the_admin_key(live, refused, headers, status, code):
    with httpx.Client(base_url=live.url, headers=headers, trust_env=False, timeout=60) as visitor:
        for method, path in (
            ("GET", "/v1/repository"),
            ("POST", "/v1/repository/models/tiny/load"),
            ("POST", "/v1/repository/models/tiny/unload"),
        ):
            refused(visitor.request(method, path, content=b"{"), status, code)


def test_api_key_is_no_admin_key_and_the_admin_key_is_no_api_key(run_server, repository, tmp_path, refused):
    key = new_key()
    (tmp_path / "keys").write_text(key_line("ada", "school", key) + "\n")
    settings = {"repository": repository, "api_keys_file": tmp_path / "keys"}
    with (
        run_server(**settings, admin_key=ADMIN) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):

        def get(path, key):
            return client.get(path, headers={"Authorization": f"Bearer {key}"})

        refused(get("/v1/repository", key), 403, "admin_key_needed")
        assert get("/v1/repository", ADMIN).status_code == 200
        refused(get("/v1/models", ADMIN), 401, "unknown_key")
        for path in ("/v1/repositoryx", "/v1/repository-", "//v1/repository"):
            refused(client.get(path), 401, "missing_key")
    with run_server(**settings) as server:
        refused(httpx.get(f"{server.url}/v1/repository", trust_env=False), 401, "missing_key")
        headers = {"Authorization": f"Bearer {key}"}
        refused(httpx.get(f"{server.url}/v1/repository", headers=headers, trust_env=False), 404, "not_found")


def _caller(live):
    """Runs coroutines on the server's event loop, from the test's thread."""
    loop = live.context.repository.models["tiny"].engine._loop
    return lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
