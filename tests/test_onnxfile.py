import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from semseal.runtime.bundle import open_bundle
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxfile import MAX_DEPTH, check_onnx

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
CONDITION = helper.make_tensor("condition", TensorProto.BOOL, [], [True])


def dense(name="w"):
    return numpy_helper.from_array(np.array([1.0, 2.0], np.float32), name)


def external(name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def located_only():
    tensor = dense()
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def named_only():
    tensor = dense()
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def sparse():
    return helper.make_sparse_tensor(dense("values"), numpy_helper.from_array(np.array([0, 3]), "indices"), [4])


def graph(nodes=(), initializers=(), **more):
    return helper.make_graph(list(nodes), "g", [X], [Y], list(initializers), **more)


def add(tensor):
    return graph([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def constant(tensor):
    return helper.make_node("Constant", [], ["y"], value=tensor)


def branch(tensor):
    return helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "branch", [], [Y], [tensor])


def choice(inner):
    """An If node with a subgraph in each branch."""
    return helper.make_node("If", ["condition"], ["y"], then_branch=branch(dense()), else_branch=inner)


def nested(levels):
    """Subgraphs within subgraphs."""
    inner = branch(dense())
    for _ in range(levels):
        inner = helper.make_graph([choice(inner)], "branch", [], [Y])
    return inner


def model(graph_, functions=(), training=()):
    out = helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 20)], functions=list(functions))
    out.training_info.extend(training)
    return out.SerializeToString()


def function(tensor):
    node = constant(tensor)
    return helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])


def function_default(tensor):
    out = helper.make_function("own", "F", ["x"], ["y"], [], [helper.make_opsetid("", 20)])
    out.attribute_proto.append(helper.make_attribute("default", tensor))
    return out


def tensors(*tensors_):
    """An attribute that is a list of tensors."""
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    node.attribute.append(AttributeProto(name="list", type=AttributeProto.TENSORS, tensors=tensors_))
    return node


def graphs(*graphs_):
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    node.attribute.append(AttributeProto(name="list", type=AttributeProto.GRAPHS, graphs=graphs_))
    return node


def sparse_attribute(**fields):
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.append(AttributeProto(name="sparse_value", **fields))
    return node


HOLDERS = {
    "initializer": lambda tensor: model(add(tensor)),
    "second initializer": lambda tensor: model(graph([], [dense("first"), tensor])),
    "attribute": lambda tensor: model(graph([constant(tensor)])),
    "list of an attribute": lambda tensor: model(graph([tensors(dense(), tensor)])),
    "branch": lambda tensor: model(graph([choice(branch(tensor))], [CONDITION])),
    "branch of a branch": lambda tensor: model(
        graph([choice(helper.make_graph([choice(branch(tensor))], "b", [], [Y]))], [CONDITION])
    ),
    "list of graphs": lambda tensor: model(graph([graphs(branch(dense()), branch(tensor))])),
    "function": lambda tensor: model(graph(), [function(dense()), function(tensor)]),
    "default of a function": lambda tensor: model(graph(), [function_default(tensor)]),
    "training": lambda tensor: model(graph(), training=[onnx.TrainingInfoProto(initialization=add(tensor))]),
    "training's algorithm": lambda tensor: model(graph(), training=[onnx.TrainingInfoProto(algorithm=add(tensor))]),
}


@pytest.mark.parametrize("place", HOLDERS)
def test_external_data_is_found_wherever_a_tensor_can_be(place):
    check_onnx(HOLDERS[place](dense()))
    for tensor in (external(), located_only(), named_only()):
        with pytest.raises(GraphError, match="external data"):
            check_onnx(HOLDERS[place](tensor))


@pytest.mark.parametrize(
    "data",
    [
        model(graph(sparse_initializer=[sparse()])),
        model(graph([sparse_attribute(type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse())])),
        model(graph([sparse_attribute(type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse()])])),
        model(graph([graphs(graph(sparse_initializer=[sparse()]))])),
    ],
)
def test_sparse_tensors_are_refused(data):
    with pytest.raises(GraphError, match="sparse tensor"):
        check_onnx(data)


def test_a_compiled_engine_within_is_refused():
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="../x.engine")
    for data in (model(graph([node])), model(graph([graphs(graph([node]))]))):
        with pytest.raises(GraphError, match="compiled engine"):
            check_onnx(data)


@pytest.mark.parametrize(
    ("operator", "domain"), [("PyOp", ""), ("PyOp", "ai.onnx.contrib"), ("StringUpper", "ai.onnx.contrib")]
)
def test_operators_that_bring_other_code_along_are_refused(operator, domain):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    for data in (model(graph([node])), model(graph([graphs(graph([node]))]))):
        with pytest.raises(GraphError, match=r"calls (Python|a library of operators)"):
            check_onnx(data)
    check_onnx(model(graph([helper.make_node(operator.lower(), ["x"], ["y"], domain="ai.onnx.contribution")])))


def test_what_onnx_runtime_would_read_as_its_own_format_is_refused():
    # a graph to every protobuf parser: its first field is a doc_string, and the mark lies in that
    data = b"\x32\x06\0\0ORTM" + model(add(dense()))
    assert onnx.load_model_from_string(data).graph.initializer[0].name == "w"
    with pytest.raises(Exception, match="ORT model"):
        onnxruntime.InferenceSession(data)
    with pytest.raises(GraphError, match="own format"):
        check_onnx(data)


def test_deep_nesting_is_refused_and_ordinary_nesting_is_not():
    check_onnx(model(graph([choice(nested(10))], [CONDITION])))
    with pytest.raises(GraphError, match=f"deeper than {MAX_DEPTH}"):
        check_onnx(model(graph([choice(nested(25))], [CONDITION])))
    data = b""
    for _ in range(2000):  # deeper than Python could recurse
        data = field(1, field(5, field(6, data)))  # a graph's node, its attribute, whose graph
    with pytest.raises(GraphError, match="deeper"):
        check_onnx(field(7, data))


def field(number, data):
    """A length-delimited field."""
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_graphs_of_a_link_pass(side):
    check_onnx(open_bundle("photos-10db").graph(side))


@pytest.mark.parametrize("place", HOLDERS)
def test_every_truncation_is_refused_or_ends_between_two_fields(place):
    data = HOLDERS[place](dense())
    reasons = [refusal(data[:size]) for size in range(len(data))]
    ends = [size for size, reason in enumerate(reasons) if not reason]
    assert all("damaged" in reason for reason in reasons if reason)
    assert len(ends) <= 5  # a model has few fields of its own: version, opset, graph, and what the place adds
    for size in ends:
        onnx.load_model_from_string(data[:size])  # protobuf agrees


def refusal(data):
    try:
        check_onnx(data)
    except GraphError as error:
        return str(error)
    return ""


WELL_FORMED = b"\x08\x0a"  # ir_version 10


MALFORMED = {
    "no value": b"\x08",
    "a number that does not end": b"\x08\xff",
    "a number of more than 10 bytes": b"\x08" + b"\x80" * 10 + b"\x00",
    "a tag that does not end": b"\xff",
    "field number 0": b"\x02\x00",
    "a tag of more than 32 bits, 7 when cut": b"\xba\x80\x80\x80\x10\x00",
    "the start of a group": b"\x3b\x3c",
    "the end of a group": b"\x3c",
    "wire type 6": b"\x3e",
    "wire type 7": b"\x3f",
    "a 64-bit value cut": b"\x09" + bytes(7),
    "a 32-bit value cut": b"\x0d" + bytes(3),
    "a length past the end": b"\x12\x02a",
    "a length of 2^63": b"\x12" + b"\xff" * 9 + b"\x01",
    "a graph that is a number": b"\x38\x01",
    "a graph that is 32 bits": b"\x3d" + bytes(4),
    "an inner field past its own message": b"\x3a\x03\x12\x02a" + b"aaaa",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_bytes_are_refused(what):
    check_onnx(WELL_FORMED)
    with pytest.raises(GraphError, match="damaged"):
        check_onnx(WELL_FORMED + MALFORMED[what])


@pytest.mark.parametrize(
    "location", [b"\x01", b"\x81\x00", b"\x81\x80\x80\x80\x10", b"\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00"]
)
def test_external_however_the_number_is_written(location):
    with pytest.raises(GraphError, match="external data"):
        check_onnx(field(7, field(5, b"\x70" + location)))
    check_onnx(field(7, field(5, b"\x70\x00")))


def test_a_tag_written_in_more_bytes_than_it_needs_is_read_all_the_same():
    with pytest.raises(GraphError, match="external data"):
        check_onnx(field(7, field(5, b"\xea\x80\x00\x00")))  # field 13, external_data, empty


@given(st.binary(max_size=300))
@example(b"")
def test_random_bytes_raise_nothing_else(data):
    refusal(data)


@functools.cache
def seeds():
    return [holder(tensor()) for holder in HOLDERS.values() for tensor in (dense, external)]


def reaches_out(message):
    """The same question put to the onnx package: is there an external or sparse tensor anywhere?"""
    name = type(message).__name__
    if name == "SparseTensorProto" or (name == "NodeProto" and message.op_type in ("EPContext", "PyOp")):
        return True
    if name == "NodeProto" and message.domain == "ai.onnx.contrib":
        return True
    if name == "TensorProto" and (message.external_data or message.data_location != TensorProto.DEFAULT):
        return True
    inner = [value for kind, value in message.ListFields() if kind.message_type is not None]
    return any(reaches_out(part) for value in inner for part in ([value] if hasattr(value, "ListFields") else value))


@given(st.data())
def test_whatever_passes_holds_nothing_that_the_onnx_package_would_find(data):
    seed = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(seed) - 1))
        seed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        assume(seed)
    if refusal(bytes(seed)):
        return
    try:
        parsed = onnx.load_model_from_string(bytes(seed))
    except Exception:
        return
    assert not reaches_out(parsed)
