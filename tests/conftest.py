"""A data folder with forty made-up digits, for the tests that need MNIST's format and not MNIST."""

import gzip
import struct

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
