"""The modules of networks.py as ONNX files.  tests/slow/test_web.py compares them with torch."""

import contextlib
import io
import logging
import warnings
from functools import partial

import data
import reference_gmm_sde as reference
from common.nearest_crystal import RECTANGULAR
from web.networks import (
    Bank,
    Curve,
    ExactPoints,
    Guided,
    LearnedPoints,
    Nearest,
    NearestOfAny,
    mixture_inputs,
)

import numpy as np
import torch

OPSET = 18
ANSWER = ["eps", "score"]
FOUND = ["truth", "error", "place", "kind"]


@contextlib.contextmanager
def quiet():
    """Without the words of the exporters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def to_onnx(module, inputs, outputs, any_length=()):
    """The bytes of an ONNX file.  inputs: {name: example}; any_length: those of any first axis."""
    sizes = {name: torch.export.Dim(f"n_{name}", min=2, max=1 << 20) for name in any_length}
    for name in {"means", "log_weights"} & sizes.keys():
        sizes[name] = sizes["means"]  # as many weights as means
    shapes = tuple({0: sizes[name]} if name in sizes else None for name in inputs)
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        names = dict(input_names=[*inputs], output_names=outputs, opset_version=OPSET)
        program = torch.onnx.export(
            module, (*inputs.values(),), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
        )
        program.save(buffer)
    return halved(buffer.getvalue())


def traced(module, inputs, outputs):
    """The same by the older exporter, which `render` needs, because it looks at its data."""
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        names = dict(input_names=[*inputs], output_names=outputs, opset_version=OPSET)
        torch.onnx.export(module, (*inputs.values(),), buffer, dynamo=False, **names)
    return without_zeros(buffer.getvalue())


def without_zeros(content):
    """The same file, in which large arrays of zeros are made when they are needed.

    `render` begins with some, and a trace writes them out.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    nodes = []
    for node in graph.node:
        array = None
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            array = numpy_helper.to_array(node.attribute[0].t)
        if array is None or array.size < 1000 or array.any():
            nodes.append(node)
            continue
        name = node.output[0]
        shape = numpy_helper.from_array(np.array(array.shape, dtype=np.int64))
        zero = numpy_helper.from_array(np.zeros(1, dtype=array.dtype))
        nodes.append(helper.make_node("Constant", [], [name + "_shape"], value=shape))
        nodes.append(helper.make_node("ConstantOfShape", [name + "_shape"], [name], value=zero))
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def halved(content):
    """The same file with its float32 weights in half precision, widened where they are used."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    casts = []
    for weight in list(graph.initializer):
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32 and array.size > 256:
            name = weight.name + "_half"
            graph.initializer.remove(weight)
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), name))
            casts.append(helper.make_node("Cast", [name], [weight.name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    return model.SerializeToString()


def jobs(net, points, img_size):
    """All that the page runs: (name, how to make it, whether it is mostly half precision).

    net: of vp_sde.py; points: {shape: net of vp_sde_2d.py}.
    """
    g = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, img_size, img_size, generator=g).clamp(-1, 1)
    theta = torch.tensor([0.3])
    one = dict(t=torch.tensor([0.5]), kind=torch.tensor([1]), theta=theta, w=torch.tensor([1.5]))
    made = [("net", partial(to_onnx, Guided(net), dict(x=image) | one, ["y"]), True)]

    # The crystals.
    angle = dict(theta=theta.double())
    made.append(("curve", partial(traced, Curve(img_size), angle, ["curve"]), False))
    for k in range(len(data.KINDS)):
        inputs = dict(x=image) | angle
        if k == RECTANGULAR:
            inputs["curve"] = Curve(img_size)(**angle)
        make = partial(traced, Nearest(k, img_size), inputs, FOUND)
        made.append((f"nearest{k}", make, False))
    nothing = dict(zero=torch.zeros(1, dtype=torch.float64))
    banks = [f"bank{k}" for k in range(len(data.KINDS))]
    made.append(("bank", partial(traced, Bank(img_size), nothing, banks), False))
    inputs = dict(x=image) | dict(zip(banks, Bank(img_size)(**nothing), strict=True))
    made.append(("nearest_any", partial(traced, NearestOfAny(img_size), inputs, FOUND), False))

    # The points.
    schedule = points["S"].schedule
    mixture = {k: torch.from_numpy(v) for k, v in mixture_inputs(reference.mixture("S")).items()}
    t = dict(t=torch.tensor([0.5], dtype=torch.float64))
    x = dict(x=torch.randn(100, 2, generator=g)) | t
    for name, net2 in points.items():
        make = partial(to_onnx, LearnedPoints(net2), x, ANSWER, ["x"])
        made.append((f"learned_{name}", make, True))
    many = ["means", "log_weights"]
    exact = partial(to_onnx, ExactPoints(schedule), x | mixture, ANSWER, ["x", *many])
    made.append(("exact", exact, False))
    return made
