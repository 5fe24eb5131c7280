"""TorchScript of strangers: loaded once every operator is known to be plain arithmetic."""

import io
import re
from typing import Any

import torch

from .archives import Refused, Unsafe, read_zip, without_folder
from .errors import InputError, ModelFileError, UntrustedModelError
from .script_archives import read_program, require_known_entries, require_matching_values

# Arithmetic, indexing, shapes and reductions: all that an energy needs. In-place twins (add_)
# are covered by stripping one trailing underscore. Nothing here reads or writes files, prints,
# starts threads or calls foreign code.
_TENSOR_OPERATORS = """
    abs acos acosh add addcdiv addcmul addmm alias all amax amin aminmax any arange argmax argmin
    argsort as_strided asin asinh atan atan2 atanh baddbmm bmm broadcast_tensors broadcast_to cat
    cdist ceil celu chunk clamp clamp_max clamp_min clone col_indices concat conj constant_pad_nd
    contiguous copy cos cosh count_nonzero cross cumprod cumsum deg2rad detach diag diag_embed
    diagonal diff div dot dropout einsum elu embedding empty empty_like eq equal erf erfc exp
    exp2 expand expand_as expm1 eye fill flatten flip floor floor_divide fmod frac full full_like
    gather ge gelu grad group_norm gt hardtanh heaviside hypot index index_add index_copy
    index_fill index_put index_select inner is_grad_enabled isclose isfinite isinf isnan item
    kron layer_norm le leaky_relu lerp lgamma linalg_cross linalg_det linalg_inv linalg_norm
    linalg_vector_norm linear linspace log log10 log1p log2 log_softmax logaddexp logcumsumexp
    logical_and logical_not logical_or logical_xor logsigmoid logsumexp lt masked_fill
    masked_scatter masked_select matmul max maximum mean meshgrid min minimum mish mm moveaxis
    movedim mul mv nan_to_num narrow ne neg new_empty new_full new_ones new_zeros nonzero
    nonzero_numpy norm normalize one_hot ones ones_like outer pad permute pinverse polar pow
    prelu prod rad2deg reciprocal relu relu6 remainder repeat repeat_interleave requires_grad
    reshape reshape_as resolve_conj resolve_neg rms_norm roll rot90 round rsqrt rsub scatter
    scatter_add scatter_reduce searchsorted select selu set_grad_enabled sgn sigmoid sign silu
    sin sinc sinh slice softmax softplus softsign sort split split_with_sizes sqrt square squeeze
    stack std std_mean sub sum swapaxes swapdims t take take_along_dim tan tanh tensor
    tensor_split tensordot threshold tile to topk trace transpose tril tril_indices triu
    triu_indices true_divide trunc type_as unbind unflatten unfold unique_consecutive
    unsafe_chunk unsafe_split unsqueeze vander var var_mean vdot view view_as where xlogy xor
    zero zeros zeros_like
    Bool Float Int FloatImplicit IntImplicit ScalarImplicit Complex
    __and__ __contains__ __derive_index __getitem__ __is__ __isnot__ __not__ __or__
    __range_length __xor__ _set_item append bool bitwise_and bitwise_or bitwise_not ceil
    device dim dict dtype extend floordiv format hash insert is_contiguous is_cuda
    is_floating_point items keys len list mathremainder modf numel ord pop range size sorted
    str stride sum_to_size values _softmax _log_softmax _unique2
    is_grad_enabled set_grad_enabled silu_backward
""".split()

_PRIMITIVES = """
    Constant CreateObject DictConstruct GetAttr If ListConstruct
    ListUnpack Loop NumToTensor RaiseException SetAttr TupleConstruct TupleIndex TupleSlice
    TupleUnpack Uninitialized abs data device dtype grad_fn is_cpu is_cuda isinstance layout max
    min requires_grad shape tolist type unchecked_cast unchecked_unwrap_optional rangelist Return
    is_meta itemsize ndim
""".split()

_ALLOWED = {f"aten::{name}" for name in _TENSOR_OPERATORS} | {
    f"prim::{name}" for name in _PRIMITIVES
}


def load_program(archive: bytes, name: str, *, trust: bool = False) -> Any:
    """Load a TorchScript archive after checking what it would do; see `read_model_file`.

    Args:
        archive: the file's bytes.
        name: for messages.
        trust: skip the checks of the program.

    Raises:
        ModelFileError: if the archive is damaged, or uses an operator of a package that is not
            imported.
        UntrustedModelError: if its program does more than arithmetic.
    """
    damaged = f"model file {name} is damaged or not a model file; export it again"
    try:
        entries = without_folder(read_zip(archive))
        # torch's own reader: another one may find other entries of the same archive.
        reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
        names = reader.get_all_records()
        if {one: reader.get_record(one) for one in names} != entries:
            raise Refused("its entries cannot be told apart")
        if not trust:
            _require_harmless_source(entries, name)
    except Unsafe as error:
        raise UntrustedModelError(
            f"model file {name}: {error}; pass trust=True only if you made it yourself"
        ) from error
    except InputError:
        raise
    except Refused as error:
        raise ModelFileError(
            f"model file {name} is damaged or not a model file ({error}); export it again"
        ) from error
    except Exception as error:
        raise ModelFileError(damaged) from error
    try:
        script = torch.jit.load(io.BytesIO(archive), map_location="cpu")
    except Exception as error:
        if unknown := re.search(r"Unknown builtin op: ([\w:.]*\w)", str(error)):
            raise _unknown_operator(name, unknown[1]) from error
        raise ModelFileError(damaged) from error
    if not trust:
        require_trusted(script, name)
    return script


def _unknown_operator(name: str, operator: str) -> ModelFileError:
    return ModelFileError(
        f"model file {name} uses the operator {operator} of another package; import "
        "that package before you load the file, with trust=True if you made it yourself"
    )


def _require_harmless_source(entries: dict[str, bytes], name: str) -> None:
    """Refuse an archive by its text alone: what `torch.jit.load` does cannot be undone.

    Raises:
        Refused, InputError: if the archive is damaged or does more than arithmetic.
    """
    require_known_entries(entries)
    program = read_program(entries)
    # A method's name tells no namespace: that of a tensor may be an operator of either.
    found = {
        call
        for call in program.calls - {"aten::autograd.grad"}
        if not any(map(_is_allowed, (call, f"aten::{call}", f"prim::{call}")))
    }
    for call in sorted(found):
        package = call.partition("::")[0]
        known = torch._C._jit_get_schemas_for_operator(call) if "::" in call else [call]
        if package not in ("aten", "prim") and not known:
            raise _unknown_operator(name, call)
    if found:
        raise Unsafe(f"it calls {', '.join(sorted(found))}, which no energy needs")
    require_matching_values(entries, program)


def _is_allowed(operator: str) -> bool:
    inplace = operator.endswith("_") and not operator.endswith("__")
    return operator in _ALLOWED or (inplace and operator[:-1] in _ALLOWED)


def require_trusted(script: Any, name: str) -> None:
    """Refuse a ScriptModule that calls an operator outside the allow-list.

    Every method of every submodule is looked at, with the functions it calls inlined.

    Raises:
        UntrustedModelError: naming the operators.
    """
    found: set[str] = set()

    def collect(block: Any) -> None:
        for node in block.nodes():
            kind = node.kind()
            if not _is_allowed(kind):
                found.add(kind)
            elif kind == "prim::unchecked_cast" and not _is_narrowing(node):
                found.add(f"{kind} to {node.output().type()}")
            for inner in node.blocks():
                collect(inner)

    for module in script.modules():
        if module._c._get_forward_hooks() or module._c._get_forward_pre_hooks():
            found.add("forward hooks")
        for method in module._c._method_names():
            graph = module._c._get_method(method).graph.copy()
            torch._C._jit_pass_inline(graph)
            collect(graph)
    if found:
        raise UntrustedModelError(
            f"model file {name} calls {', '.join(sorted(found))}, which no energy needs; "
            "pass trust=True only if you made it yourself"
        )


def _is_narrowing(node: Any) -> bool:
    """Whether a cast that nobody checks makes no object of one class pass for another's."""
    given, taken = next(node.inputs()).type(), node.output().type()
    if "__torch__" not in str(taken):
        return True  # the interpreter compares the kinds of plain values itself
    return bool(given.kind() == "OptionalType" and given.getElementType() == taken)
