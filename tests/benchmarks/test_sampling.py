import json
from pathlib import Path

import numpy as np
import pytest

from carousel.benchmarks import sampling, words
from carousel.benchmarks.__main__ import main
from carousel.benchmarks.load import Generation, Target
from carousel.benchmarks.naive import sample
from carousel.benchmarks.record import Latency, LoadResult
from carousel.benchmarks.sampling import BOTH, KINDS, PLAIN, SamplingReport, SamplingRun, text
from carousel.benchmarks.server import StepTime, exposition, running

CHECKOUT = Path(__file__).parents[2]
SHAPE = ["--streams", "2", "--seconds", "0.4", "--warmup", "0.1", "--rounds", "1", "--max-tokens", "5"]


def test_command_measures_every_kind_beside_another_checkout(capsys):
    bundle = str(CHECKOUT / "bundles" / "shakespeare" / "2")
    assert main(["--sampling", "--bundle", bundle, *SHAPE, "--against", str(CHECKOUT)]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, measured = [cell.strip() for cell in rows[0]], [[cell.strip() for cell in row] for row in rows[1:]]
    assert [row[1] for row in measured] == [*KINDS, *KINDS]
    at = head.index("of the other checkout")
    assert {row[at] == "-" for row in measured if row[0].endswith("other")} == {True}
    assert all(float(row[at]) > 0 for row in measured if not row[0].endswith("other"))
    assert {row[-1] for row in measured} == {"0"}


def test_command_measures_peers_on_a_vocabulary_of_any_size(capsys, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from carousel.models.nn.language import LanguageModel, LanguageModelConfig

    made = []

    def small_model(shape, size):
        made.append((shape, size))
        torch.manual_seed(0)
        return LanguageModel(LanguageModelConfig(vocabulary_size=size, cell="lstm", hidden_size=8, layers=1)).eval()

    monkeypatch.setattr(words, "REPOSITORY", tmp_path / "benchmarks")
    monkeypatch.setattr(words, "words_model", small_model)
    monkeypatch.setattr(words, "VALIDATION_TOKENS", 50)
    monkeypatch.setattr(sampling, "KINDS", {kind: KINDS[kind] for kind in (PLAIN, BOTH)})
    assert main(["--sampling", "--vocabulary", "60", "--peers", "torch", *SHAPE]) == 0
    assert made == [("flat", 60), ("peaked", 60), ("flat", 60)]
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, measured = [cell.strip() for cell in rows[0]], [[cell.strip() for cell in row] for row in rows[1:]]
    servers = ["Carousel, flat fp32", "flat int8", "naive, flat fp32", "naive, flat int8", "peaked int8"]
    assert [row[:2] for row in measured] == [[server, kind] for server in servers for kind in (PLAIN, BOTH)]
    assert all(float(row[head.index("of plain")]) > 0 for row in measured)
    assert {row[-1] for row in measured} == {"0"}


def test_request_asks_for_what_the_kind_says():
    asked = Generation((1,), 9, sampling=KINDS["top-k 40, penalty 1.2"].parameters)
    assert json.loads(Target(1, "m").request(asked, 3))["sampling"] == {
        "max_tokens": 9,
        "temperature": 0.8,
        "seed": 3,
        "top_k": 40,
        "repetition_penalty": 1.2,
    }
    over = Target(1, "m").over("completions").request(Generation((1,), 9, sampling={"logprobs": 5}), 3)
    assert json.loads(over)["logprobs"] == 5


def test_table_has_medians_and_ratios():
    def run(server, kind, tokens):
        latency = Latency(9, 0.002, 0.006)
        result = LoadResult(1.0, tokens, 1, latency, latency, 0, Latency(0, None, None), {}, 0.1)
        return SamplingRun(server, kind, 64, result, StepTime(10, 0.03, 0.01))

    runs = [run("own", PLAIN, tokens) for tokens in (90, 100, 400)] + [run("own", BOTH, 80), run("other", BOTH, 40)]
    table = text(SamplingReport(runs, {"own": "other"})).splitlines()
    cells = {tuple(cell.strip() for cell in line.strip("| ").split(" | "))[:5] for line in table[3:]}
    assert ("own", PLAIN, "100", "1.00", "2.00 ms") in cells
    assert ("own", BOTH, "80", "0.80", "2.00 ms") in cells
    (own,) = [line for line in table if "own" in line and BOTH in line]
    assert own.split("|")[7].strip() == "2.0"  # 6 ms of 3
    assert own.split("|")[10].strip() == "2.00"


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(0, 0.5, {1, 3}), (3, 0.8, {1, 3, 4}), (2, 0.99, {1, 3})])
def test_naive_sample_draws_from_the_nucleus(top_k, top_p, kept):
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))
    generator = np.random.default_rng(0)
    drawn = [sample(logits, 1.0, top_k, top_p, generator)[0] for _ in range(4000)]
    assert set(drawn) == kept
    shares = np.array([0.1, 0.4, 0.05, 0.25, 0.2])[sorted(kept)]
    counts = np.bincount(drawn, minlength=5)[sorted(kept)] / 4000
    np.testing.assert_allclose(counts, shares / shares.sum(), atol=0.04)


OTHER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the other checkout")
http.server.HTTPServer(("127.0.0.1", int(os.environ["CAROUSEL_PORT"])), Handler).serve_forever()
"""


def test_other_checkout_runs_its_own_code(tmp_path):
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__main__.py").write_text(OTHER)
    bundle = CHECKOUT / "bundles" / "shakespeare" / "2"
    with running("carousel", bundle, tmp_path) as target:
        assert exposition(target) == "the other checkout"
    with running("carousel", bundle) as target:
        assert "carousel_ready 1.0" in exposition(target)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["--against", "."], "argument --against: is for --sampling alone"),
        (["--vocabulary", "99"], "argument --vocabulary: is for --sampling alone"),
        (["--sampling", "--open", "0.5"], "argument --open: is not for --sampling"),
        (["--sampling", "--output", "x"], "argument --output: is not for --sampling"),
        (["--sampling", "--precision", "fp32"], "argument --precision: is not for --sampling"),
        (["--sampling", "--providers", "cuda"], "argument --providers: is cuda; --sampling measures on the cpu"),
        (["--sampling", "--rounds", "0"], "argument --rounds: is 0; --sampling takes 1 or more"),
        (["--sampling", "--against", "nowhere"], "nowhere holds no service/__main__.py; name a checkout"),
        (["--sampling", "--against", str(CHECKOUT / "docs")], "docs holds no service/__main__.py; name a checkout"),
        (["--sampling", "--bundle", "b", "--peers", "torch"], "leave out --peers and --vocabulary"),
    ],
)
def test_what_would_not_be_done_is_refused(arguments, mistake, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert mistake in capsys.readouterr().err
