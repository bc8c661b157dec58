"""What several tests need: a folder of made-up digits, and what a user's mistake is to look like."""

import gzip
import os
import re
import struct

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests: before NumPy and torch are imported

import numpy as np
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory):
    """Smooth blobs and random labels, both parts gzipped, in torchvision's layout."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        noise = torch.from_numpy(rng.random((40, 1, 28, 28), dtype=np.float32))
        x = (F.avg_pool2d(noise, 5, 1, 2)[:, 0] * 900 - 380).clamp(0, 255).byte().numpy()
        y = rng.integers(0, 10, 40, dtype=np.uint8)
        for name, magic, a in (("images-idx3", 2051, x), ("labels-idx1", 2049, y)):
            content = struct.pack(f">{1 + a.ndim}I", magic, *a.shape) + a.tobytes()
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def mistake(capsys):
    """mistake(main, *words): the line that a user's mistake is answered with.

    Checks that the exit status is 2 and that nothing else is said, but for argparse's usage before it.
    """

    def line_of(main, *words):
        capsys.readouterr()  # what came before
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and re.match(r"\w+\.py: error: ", lines[-1])
        assert len(lines) == 1 or (lines[0].startswith("usage:") and not any("rror" in line for line in lines[:-1]))
        return lines[-1]

    return line_of
