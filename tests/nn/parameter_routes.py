"""Ways of changing the parameters of a layer in evaluation, most of which no version counter notices."""

import copy

import torch
from torch import nn
from torch.func import functional_call


def _noise(tensor, generator):
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def _lay_out(layer):
    """Parameters as fused optimisers and flat vectors want them."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.resolve_neg().contiguous()


def _gradients(layer, generator):
    _lay_out(layer)
    for parameter in layer.parameters():
        parameter.grad = _noise(parameter, generator)


def _optimizer(kind, **options):
    def step(layer, generator):
        _gradients(layer, generator)
        kind(layer.parameters(), 0.3, **options).step()
        layer.zero_grad()

    return step


def _each(change):
    def run(layer, generator):
        for parameter in layer.parameters():
            change(parameter, _noise(parameter, generator))

    return run


def _one_entry(parameter, noise):
    parameter.data[(0,) * parameter.dim()] += noise.flatten()[0] + 0.1


def _assign_data(parameter, noise):
    parameter.data = noise


def _transpose(parameter, noise):
    """Another view of the same memory, or where the shape forbids it the reversed order."""
    square = [(i, i + 1) for i in range(parameter.dim() - 1) if parameter.shape[i] == parameter.shape[i + 1]]
    parameter.data = parameter.data.transpose(*square[0]) if square else parameter.data.flip(0)


def _offset(parameter, noise):
    memory = torch.cat((torch.zeros(3).to(noise), noise.flatten()))
    parameter.data = memory[3:].view_as(noise)


def _strided(parameter, noise):
    parameter.data = torch.stack((noise, torch.zeros_like(noise)), -1)[..., 0]


def _channels_last(parameter, noise):
    if parameter.dim() == 4:
        parameter.data = noise.to(memory_format=torch.channels_last)


def _numpy(parameter, noise):
    parameter.data = parameter.data.resolve_neg()
    parameter.detach().numpy()[...] = noise.numpy()


def _set(parameter, noise):
    with torch.no_grad():
        parameter.set_(noise)


def _sharing_memory(parameter, noise):
    parameter.data.share_memory_()
    parameter.data.copy_(noise)


def _under_inference_mode(parameter, noise):
    with torch.inference_mode():
        parameter.add_(noise)


def _signs(parameter, noise):
    parameter.data.neg_()


def _lazily_negated(parameter, noise):
    if parameter.dim() > 1:  # not the bias, which reaches kernels as it is
        parameter.data = torch._neg_view(parameter.data)


def _swap_tensors(layer, generator):
    for name, parameter in list(layer.named_parameters(recurse=False)):
        other = nn.Parameter(_noise(parameter, generator), requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(getattr(layer, name), other)


def _flat_vector(layer, generator):
    _lay_out(layer)
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
    nn.utils.vector_to_parameters(vector, layer.parameters())
    vector.copy_(_noise(vector, generator))


def _average(layer, generator):
    for mine in layer.parameters():
        mine.data.mul_(0.5).add_(_noise(mine, generator), alpha=0.5)


def _copy_to(layer, generator):
    for mine in layer.parameters():
        mine.data.copy_(_noise(mine, generator).to(mine.device).data)


def _load(layer, generator, **options):
    layer.load_state_dict({name: _noise(value, generator) for name, value in layer.state_dict().items()}, **options)


def _load_assigned(layer, generator):
    _load(layer, generator, assign=True)
    layer.requires_grad_(False)


def _foreach(layer, generator):
    _lay_out(layer)
    data = [parameter.data for parameter in layer.parameters()]
    torch._foreach_mul_(data, -1.25)


def _there_and_back(layer, generator):
    """To float64, changed, and back: the address may be the old one."""
    dtype = next(layer.parameters()).dtype
    layer.to(torch.float64)
    _copy_to(layer, generator)
    layer.to(dtype)


def _by_dictionary(layer, generator):
    for name, parameter in list(layer._parameters.items()):
        if parameter is not None:
            layer._parameters[name] = nn.Parameter(_noise(parameter, generator), requires_grad=False)


def _buffers(layer, generator):
    for buffer in layer.buffers():
        buffer.data.copy_(0.01 * _noise(buffer, generator).abs())


def _apply(layer, generator):
    layer.apply(lambda module: [p.data.copy_(_noise(p, generator)) for p in module.parameters(recurse=False)])


def _nothing(layer, generator):
    pass


ROUTES = {
    "SGD": _optimizer(torch.optim.SGD),
    "SGD fused": _optimizer(torch.optim.SGD, fused=True),
    "SGD foreach": _optimizer(torch.optim.SGD, foreach=True),
    "Adam fused": _optimizer(torch.optim.Adam, fused=True),
    "AdamW fused": _optimizer(torch.optim.AdamW, fused=True),
    "Adagrad fused": _optimizer(torch.optim.Adagrad, fused=True),
    "data.copy_": _each(lambda parameter, noise: parameter.data.copy_(noise)),
    "detach().add_": _each(lambda parameter, noise: parameter.detach().add_(noise)),
    "one entry": _each(_one_entry),
    "data =": _each(_assign_data),
    "data.t()": _each(_transpose),
    "offset": _each(_offset),
    "strided": _each(_strided),
    "channels last": _each(_channels_last),
    "numpy": _each(_numpy),
    "set_": _each(_set),
    "shared memory": _each(_sharing_memory),
    "inference mode": _each(_under_inference_mode),
    "signs": _each(_signs),
    "lazily negated": _each(_lazily_negated),
    "swap_tensors": _swap_tensors,
    "flat vector": _flat_vector,
    "average": _average,
    "copy_to": _copy_to,
    "load_state_dict": _load,
    "load_state_dict(assign=True)": _load_assigned,
    "foreach": _foreach,
    "to and back": _there_and_back,
    "_parameters[...] =": _by_dictionary,
    "buffers": _buffers,
    "apply": _apply,
    "nothing": _nothing,
}


def call_with_others(layer, x, generator):
    """Returns the output of functional_call with other tensors, and that of a copy that has them."""
    names = dict(layer.named_parameters())
    others = {name: _noise(value, generator) for name, value in names.items()}
    twin = copy.deepcopy(layer)
    for name, parameter in twin.named_parameters():
        parameter.data = others[name].clone()
    return functional_call(layer, others, (x,)), twin(x)
