"""Configurations that can't be used are answered by one sentence that says where the fault is."""

from pathlib import Path

import pytest

from tests.cli.helpers import assert_answered

CONFIGS = {
    "overlay's value": (
        "model: {init_args: {drop_prob: 30%}}",
        "model.drop_prob of MLP must be a number, but is '30%'",
    ),
    "overlay's name": (
        "model: {init_args: {hiden_sizes: [3]}}",
        r"hiden_sizes is no .* of MLP \(model\); did you mean",
    ),
    "overlay's list": (
        "model: {init_args: {optimizer: {class_path: SGD, init_args: {lr: [1]}}}}",
        r"model.optimizer.lr of SGD must be a number or a Tensor, but is \[1\]$",
    ),
    "in an object": (
        "data: {init_args: {mix: {class_path: Mixup, init_args: {alpha: x}}}}",
        "data.mix.alpha of Mixup must be a number, but is 'x'$",
    ),
    "list for an object": (
        "trainer: {callbacks+: [{class_path: BatchMixing, init_args: {mix: [Mixup]}}]}",
        r"trainer.callbacks.mix of BatchMixing must be a Mixing, but is \['Mixup'\]$",
    ),
    "number for a name": (
        "trainer: {callbacks+: [{class_path: L2Penalty, init_args: {1: 2}}]}",
        "init_args of L2Penalty must have names as keys, but has 1$",
    ),
    "tag of another value": ("trainer: {logger: !!bool maybe}", "isn't plain YAML: 'maybe' is no value of its tag"),
    "prediction null": ("prediction: null", "prediction must be a mapping of settings, but is null"),
    "null": ("trainer: {callbacks+: [null]}", "name of a Callback or a mapping .*, but is null"),
    "function": ("trainer: {callbacks+: [{class_path: os.system}]}", "must be a Callback, but os.system is none"),
    "inits": ("trainer: {callbacks+: [{class_path: L2Penalty, inits: {weight: 1}}]}", "'inits' beside class_path"),
    "flat": ("trainer: {callbacks+: [{class_path: L2Penalty, weight: 1}]}", "arguments of L2Penalty go into init_args"),
    "map": ("trainer: {callbacks+: {L2Penalty: {weight: 1}}}", "by class_path, as in class_path: L2Penalty"),
    "empty": ("trainer: {callbacks+: [{}]}", "must name a Callback by class_path"),
    "number": ("trainer: {callbacks+: [{class_path: 5}]}", "class_path of trainer.callbacks must be the name"),
    "section null": ("trainer: null", "trainer must be a mapping of settings, but is null"),
    "section list": ("trainer: [1]", "trainer must be a mapping of settings, but is"),
    "unknown": ("trainer: {max_epoch: 1}", "trainer.max_epoch is no setting; did you mean trainer.max_epochs?"),
    "key": ("trainer: {5: 1}", "config 'x.yaml' must have names as keys, but has 5"),
    "null key": ("~: 1", "config 'x.yaml' must have names as keys, but has null"),
    "digits": (f"trainer: {{max_epochs: {'1' * 5000}}}", "config 'x.yaml' isn't plain YAML: Exceeds the limit"),
    "outside": (
        "trainer: {callbacks+: [{class_path: ModelCheckpoint, init_args: {filename: ../../up}}]}",
        "trainer.callbacks.filename must be a name within the run's folder, but is '../../up'",
    ),
    "tag": ("trainer: !!python/object/apply:os.system ['touch executed']", "the tag !!python/object/apply:os.system"),
    "nested tag": ("model: {x: !!python/name:os.system ''}", "the tag !!python/name:os.system"),
    "recursive": ("trainer: &t {logger: *t}", r"an alias \*t of what it lies in"),
    "twice": ("trainer:\n  max_epochs: 1\n  max_epochs: 2", "line 3 has 'max_epochs' again"),
    "tab": ("trainer:\n\tmax_epochs: 1", "isn't plain YAML: .* line 2"),
    "unclosed": ("trainer: {max_epochs: 1", "isn't plain YAML"),
    "documents": ("trainer: {}\n---\nmodel: {}", "must be one YAML document"),
    "deep": ("[" * 3000, "levels deep|nesting depth"),
    "bomb": (
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]),
        "must come to at most 100,000 values",
    ),
    "utf-16": ("trainer: {}".encode("utf-16"), "must be text in UTF-8"),
    "latin-1": ("a: ä".encode("latin-1"), "must be text in UTF-8"),
    "binary": (bytes(range(256)), "must be text in UTF-8"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_that_cannot_be_used(name, capsys):
    content, message = CONFIGS[name]
    Path("x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_answered(capsys, message, "--config", "x.yaml")
    assert not Path("runs").exists()
