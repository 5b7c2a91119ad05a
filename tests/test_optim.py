import pytest
import torch
from torch import nn

from lightning_reg.core.selection import select_parameters
from lightning_reg.optim import is_normalization, layer_decay_groups, weight_decay_groups, weight_decay_table
from lightning_reg.settings import SettingError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.recurrent = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.slope = nn.PReLU()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_matrices_of_weights_decay():
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["name"]: {names[entry] for entry in group["params"]} for group in weight_decay_groups(model)}
    assert groups["decay"] == {
        *("conv.weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"),
        *("attention.in_proj_weight", "attention.out_proj.weight"),
    }
    assert groups["no_decay"] == {
        *("embedding.weight", "conv.bias", "norm.weight", "norm.bias", "recurrent.bias_ih_l0", "recurrent.bias_hh_l0"),
        *("attention.in_proj_bias", "attention.out_proj.bias", "slope.weight"),
    }


def test_strength_is_the_given_or_the_optimizers_own():
    model = nn.Linear(2, 2)
    given = torch.optim.AdamW(weight_decay_groups(model, 0.3), weight_decay=0.1)
    own = torch.optim.AdamW(weight_decay_groups(model), weight_decay=0.1)
    assert [group["weight_decay"] for group in given.param_groups] == [0.3, 0.0]
    assert [group["weight_decay"] for group in own.param_groups] == [0.1, 0.0]


def groups_of(model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[entry] for entry in group["params"]} for group in weight_decay_groups(model)}


@pytest.mark.parametrize("embedding_first", [True, False])
def test_tied_embedding_is_an_embedding_whichever_comes_first(embedding_first):
    embedding, output = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    output.weight = embedding.weight
    model = nn.Sequential(*([embedding, output] if embedding_first else [output, embedding]))
    assert groups_of(model) == {"no_decay": {"0.weight"}}


def test_parametrized_parameters_are_what_their_layer_makes_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    for layer, name in ((model[0], "weight"), (model[0], "bias"), (model[1], "weight")):
        nn.utils.parametrize.register_parametrization(layer, name, nn.Identity())
    assert groups_of(model)["decay"] == {"0.parametrizations.weight.original"}
    assert groups_of(model[0])["decay"] == {"parametrizations.weight.original"}


def test_norms_whose_scales_are_shaped_like_images_are_spared():
    class FilterResponseNorm2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(1, 4, 1, 1))

    assert groups_of(FilterResponseNorm2d()) == {"no_decay": {"gamma"}}


def test_fused_layers_with_a_norm_in_their_name_still_decay():
    class LayerNormLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    assert not is_normalization(LayerNormLinear())


def test_a_parameter_in_a_list_or_dict_is_what_the_list_is_called():
    model = nn.Module()
    model.biases = nn.ParameterList([torch.zeros(3), torch.zeros(3)])
    model.scales = nn.ParameterDict({"low": torch.ones(3), "high": torch.ones(3, 3)})
    model.weights = nn.ParameterList([torch.zeros(3, 3)])
    model.parts = nn.ParameterDict({"bias": torch.zeros(3), "scale": torch.ones(3), "weight": torch.zeros(3, 3)})
    assert groups_of(model) == {
        "decay": {"scales.high", "weights.0", "parts.weight"},
        "no_decay": {"biases.0", "biases.1", "scales.low", "parts.bias", "parts.scale"},
    }
    assert groups_of(model.weights) == {"decay": {"0"}}


@pytest.mark.parametrize("name", ["register_tokens", "storage_tokens", "pos_emb", "position_embeddings"])
def test_tokens_and_positions_that_are_added_are_spared_by_all_their_names(name):
    model = nn.Linear(3, 3)
    model.register_parameter(name, nn.Parameter(torch.zeros(1, 4, 3)))
    assert groups_of(model) == {"decay": {"weight"}, "no_decay": {"bias", name}}


def test_excluded_parameters_are_spared_and_the_table_says_why(capsys):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    groups = weight_decay_groups(module, 0.1, exclude=("2.*",), verbose=True)
    assert [group["name"] for group in groups] == ["no_decay"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0.weight", "(3,", "4)", "no:", "frozen"]
    assert lines[3].endswith("no: norm or bias")
    assert lines[5].endswith("no: excluded")
    assert lines[-1] == "0 of 29 weights are decayed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": -0.1}, r"weight_decay must be in \[0, ∞\), but is -0.1"),
        ({"exclude": ("3.*",)}, r"exclude pattern '3\.\*' matches no parameter; there are 0\.weight"),
    ],
)
def test_bad_settings_of_groups_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        weight_decay_groups(nn.Sequential(nn.Linear(4, 3)), **settings)


def test_a_single_glob_may_be_given_as_text():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    assert weight_decay_groups(model, exclude="1.*")[0]["params"] == [model[0].weight]
    assert "1.weight   (2, 3)  no: excluded" in weight_decay_table(model, exclude="1.*")


class Tokens(nn.Module):
    """The names that vision transformers give to what isn't a weight of a layer."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.logit_scale = nn.Parameter(torch.zeros(2, 1, 1))
        self.gamma_1, self.ls1 = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.attention_biases = nn.Parameter(torch.zeros(2, 3))
        self.gamma = nn.Linear(4, 4, bias=False)
        self.token_mixing = nn.Parameter(torch.zeros(4, 4))


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


def names_of(module, name):
    named = {parameter: weight for weight, parameter in module.named_parameters()}
    groups = {group["name"]: group["params"] for group in weight_decay_groups(module)}
    return sorted(named[parameter] for parameter in groups.get(name, []))


def test_tokens_positions_and_scales_are_spared():
    assert names_of(Tokens(), "decay") == ["gamma.weight", "token_mixing"]
    assert names_of(LayerScale(), "no_decay") == ["scale"]


def test_a_module_may_name_what_is_spared():
    class Declares(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompts, self.head = nn.Parameter(torch.zeros(3, 4)), nn.Linear(4, 2)

        def no_weight_decay(self):
            return {"prompts", "head.weight"}

    network = nn.Sequential(Declares(), nn.Linear(2, 2))
    assert names_of(network, "decay") == ["1.weight"]


def marked():
    """A state-space layer, whose matrices are marked as those of S4 and Mamba are."""
    layer = nn.Linear(4, 4, bias=False)
    layer.A_log, layer.D = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
    layer.A_log._no_weight_decay = layer.D._no_weight_decay = True
    layer.weight._no_weight_decay = False
    return layer


def test_marked_parameters_are_spared_by_groups_and_by_penalties():
    assert names_of(marked(), "decay") == ["weight"]
    penalized = select_parameters(marked(), include=("*",), exclude_norm_and_bias=True)
    assert list(penalized) == ["weight"]


def test_vectors_with_the_general_names_of_scales_are_spared():
    module = nn.Linear(4, 4, bias=False)
    for name in ("beta", "scale", "scale_2", "temperature", "scale_mlp", "timescale"):
        setattr(module, name, nn.Parameter(torch.ones(1, 4, 1)))
    module.scale1 = nn.Parameter(torch.ones(4, 4))
    assert names_of(module, "decay") == ["scale1", "scale_mlp", "timescale", "weight"]


@pytest.mark.parametrize(
    ("name", "normalizes"),
    [
        ("RMSNorm", True),
        ("LlamaRMSNorm", True),
        ("LayerNorm2d", True),
        ("Layernorm", True),
        ("BatchNormalization", True),
        ("NormedLinear", False),
        ("NormalRegression", False),
        ("Enormous", False),
    ],
)
def test_a_norm_is_known_by_the_word(name, normalizes):
    kind = type(name, (nn.Module,), {})
    module = kind()
    module.weight = nn.Parameter(torch.ones(4))
    assert is_normalization(module) == normalizes


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_linear_layer_of_normalized_features_is_no_norm(outputs):
    class LayerNormLinear(nn.Linear):
        pass

    assert names_of(LayerNormLinear(4, outputs, bias=False), "decay") == ["weight"]


def rates_of(model, **settings):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layer_decay_groups(model, 0.5, lr=1.0, **settings)
    assert len({group["name"] for group in groups}) == len(groups)
    torch.optim.AdamW(groups)  # takes them
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_rates_halve_from_block_to_block_and_what_comes_before_and_after_has_its_own():
    model = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), "head": nn.Linear(2, 2)}
    )
    rates = rates_of(model)
    assert [rates[f"{name}.weight"] for name in ("stem", "blocks.0", "blocks.1", "blocks.2", "head")] == [
        1 / 16,
        1 / 8,
        1 / 4,
        1 / 2,
        1,
    ]


def test_numbered_stages_are_blocks_too():
    torchvision = pytest.importorskip("torchvision")
    rates = rates_of(torchvision.models.resnet18())
    assert rates["conv1.weight"] == rates["bn1.weight"] == 2**-5
    assert rates["layer1.0.conv1.weight"] == rates["layer1.1.bn2.bias"] == 2**-4
    assert rates["layer4.1.conv2.weight"] == 0.5
    assert rates["fc.bias"] == 1


def test_tokens_and_positions_beside_the_layers_are_no_layers():
    model = nn.Module()
    model.token, model.position = nn.Parameter(torch.zeros(1, 1, 2)), nn.Parameter(torch.zeros(1, 3, 2))
    model.embed, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
    rates = rates_of(model)
    assert rates["token"] == rates["position"] == rates["embed.weight"] == 0.5
    assert rates["head.weight"] == 1
    assert set(rates_of(nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])).values()) == {1.0}


def test_more_than_nine_blocks_are_counted_as_numbers():
    rates = rates_of(nn.Sequential(*(nn.Linear(1, 1) for _ in range(12))))
    assert [rates[f"{index}.weight"] for index in range(12)] == [0.5 ** (11 - index) for index in range(12)]


def test_decayed_and_spared_parameters_of_a_layer_have_one_rate():
    groups = layer_decay_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.5, lr=1.0, weight_decay=0.1)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("depth_0_decay", 0.5, 0.1),
        ("depth_0_no_decay", 0.5, 0.0),
        ("depth_1_no_decay", 1.0, 0.0),
    ]


@pytest.mark.parametrize(("decay", "lr"), [(0.0, 1.0), (1.1, 1.0), (0.5, -1.0)])
def test_bad_layer_decay_is_refused(decay, lr):
    with pytest.raises(SettingError, match=r"(decay|lr) must be in"):
        layer_decay_groups(nn.Linear(2, 2), decay, lr=lr)


@pytest.mark.parametrize(
    "grouped",
    [weight_decay_groups, lambda module: layer_decay_groups(module, 0.5, lr=0.1), weight_decay_table],
    ids=["weight_decay_groups", "layer_decay_groups", "weight_decay_table"],
)
def test_lazy_modules_have_to_run_first(grouped):
    module = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(SettingError, match=r"module must know all its shapes, but 1\.weight has none yet; run a batch"):
        grouped(module)
    module(torch.ones(2, 3))
    assert grouped(module)
