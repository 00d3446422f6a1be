#!/bin/sh
# torch 2.13.0 (CPU): nn.LSTM under autocast to bfloat16 cannot be trained on an x86 processor without AVX-512.
#
# torch hands the layer to oneDNN, which has no bfloat16 kernel for an LSTM there, and raises "could not create a
# primitive descriptor for the LSTM forward propagation primitive"; its own kernels, which it takes when oneDNN is
# switched off, run the same layer. nn.GRU and the same LSTM in float32 run either way. oneDNN is told here to see no
# more than AVX2, so that every x86 processor shows it.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
x = torch.randn(5, 3, 4)


def runs(layer, precision, onednn):
    torch.backends.mkldnn.enabled = onednn
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            layer(x)[0].float().sum().backward()
    except RuntimeError as error:
        return str(error).split(".")[0]
    return "runs"


seen = {
    (name, precision, onednn): runs(make(4, 6), precision, onednn)
    for name, make in {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}.items()
    for precision in ("float32", "bfloat16")
    for onednn in (True, False)
}
for (name, precision, onednn), said in seen.items():
    print(f"{name} {precision}, oneDNN {'on' if onednn else 'off'}: {said}")
failed = {key for key, said in seen.items() if said != "runs"}
assert failed == {("LSTM", "bfloat16", True)}, failed
assert "primitive descriptor for the LSTM forward" in seen["LSTM", "bfloat16", True]
PYTHON
