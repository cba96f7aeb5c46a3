import pytest
import torch
from torch import nn
from toy import ToyEvaluator, toy_source, toy_spec

from zoo.config import OptimSection
from zoo.engine import autocast_dtype, evaluate, train_steps
from zoo.errors import NonFiniteError, ZooError
from zoo.optim import AveragedModel, build_optimizer, parameter_groups, rate_factor
from zoo.types import Losses

CPU = torch.device("cpu")


def batches(size: int, count: int):
    source = toy_source()
    assert source.train is not None
    samples = [source.train[i] for i in range(size * count)]
    return [source.collate(samples[i : i + size]) for i in range(0, len(samples), size)]


def build(**config):
    spec = toy_spec(**config)
    torch.manual_seed(0)
    model = spec.build(spec.config, 2)
    return model, spec.criterion(spec.config, 2), torch.optim.SGD(model.parameters(), 0.1)


def test_a_step_clips_and_reports_the_norm_before():
    model, criterion, optimizer = build()
    before = [p.detach().clone() for p in model.parameters()]
    step = next(train_steps(model, criterion, batches(6, 1), optimizer, device=CPU, max_norm=1e-3))
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(model.parameters(), before, strict=True)]
    )
    assert step.grad_norm > 1e-2
    assert float(moved.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert step.images == 6


def test_accumulated_batches_average_their_gradients():
    grads = []
    for accumulate in (1, 2):
        model, criterion, optimizer = build(dropout=0.0)
        steps = train_steps(
            model, criterion, batches(6, 2), optimizer, device=CPU, accumulate=accumulate
        )
        if accumulate == 2:
            done = list(steps)
            assert len(done) == 1
            assert done[0].images == 12
            grads.append([p.grad.clone() for p in model.parameters()])
        else:
            parts = []
            for batch in batches(6, 2):
                model.zero_grad()
                criterion(model(**batch.inputs), batch.targets).total.backward()
                parts.append([p.grad.clone() for p in model.parameters()])
            grads.append([(a + b) / 2 for a, b in zip(*parts, strict=True)])
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_forward_with_targets_is_given_them_in_training_only():
    class Curious(nn.Module):
        seen: list = []  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, values, targets=None):
            self.seen.append(targets)
            return {"logits": self.head(values)}

    model = Curious()
    _, criterion, _ = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    [batch] = batches(6, 1)
    list(train_steps(model, criterion, [batch], optimizer, device=CPU))
    assert torch.equal(model.seen[0][3]["label"], batch.targets[3]["label"])
    post = toy_spec().postprocess(None)
    evaluate(model, post, [batch], ToyEvaluator(), device=CPU)
    assert model.seen[1] is None


@pytest.mark.parametrize("where", ["loss", "gradient", "parameter"])
def test_what_is_not_finite_stops_before_the_weights_are_touched(where):
    model, criterion, optimizer = build()
    bad = criterion

    def poisoned(outputs, targets):
        losses = criterion(outputs, targets)
        if where == "loss":
            nan = float("nan")
            return Losses(losses.total * nan, {"loss_ce": losses.terms["loss_ce"] * nan})
        outputs["logits"].register_hook(lambda g: g * float("inf"))
        return losses

    if where == "parameter":
        with torch.no_grad():
            model.head.weight[0, 0] = float("nan")
    else:
        bad = poisoned
    before = {k: v.clone() for k, v in model.state_dict().items() if "norm" not in k}
    name = {"loss": "loss loss_ce", "gradient": "the gradient of backbone.weight",
            "parameter": "parameter head.weight"}[where]  # fmt: skip
    with pytest.raises(NonFiniteError, match=rf"{name} is not finite \(images \[100, 101, 102"):
        list(train_steps(model, bad, batches(3, 1), optimizer, device=CPU))
    for key, value in before.items():
        torch.testing.assert_close(model.state_dict()[key], value, equal_nan=True)


def test_evaluation_restores_the_mode_and_scores_every_sample():
    model, _, _ = build()
    model.train()
    metrics = evaluate(
        model, toy_spec().postprocess(None), batches(5, 3), ToyEvaluator(), device=CPU
    )
    assert metrics["scored"] == 15
    assert model.training


def test_autocast_is_what_is_asked_for():
    assert autocast_dtype(CPU, "float32") is None
    assert autocast_dtype(CPU, "bf16") is torch.bfloat16


def test_backbone_and_norms_have_their_own_groups():
    model, _, _ = build()
    section = OptimSection(lr=1.0, backbone_lr=0.1, weight_decay=0.5, decay_norms=False)
    found = {
        (g["lr"], g["weight_decay"]): sum(p.numel() for p in g["params"])
        for g in parameter_groups(model, section)
    }
    assert found == {(0.1, 0.5): 32, (0.1, 0.0): 8, (1.0, 0.0): 8 + 8 + 2, (1.0, 0.5): 16}
    everything = parameter_groups(model, OptimSection())
    assert {g["weight_decay"] for g in everything} == {1e-4}
    model.requires_grad_(False)
    with pytest.raises(ZooError, match="no trainable parameter"):
        build_optimizer(model, section)


def test_parts_that_begin_at_zero_may_learn_faster():
    model, _, _ = build()
    names = [name for name, _ in model.named_parameters()]
    section = OptimSection(lr=1.0, backbone_lr=0.1, rates={"head.": 50.0, "backbone.": 2.0})
    groups = parameter_groups(model, section)
    rates = {id(p): g["base_lr"] for g in groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    wanted = {n: 50.0 if n.startswith("head.") else 0.2 if n.startswith("backbone.") else 1.0
              for n in names}  # fmt: skip
    assert found == pytest.approx(wanted)
    with pytest.raises(ZooError, match=r"optim.rates has 'heads.', and no parameter"):
        parameter_groups(model, OptimSection(rates={"heads.": 2.0}))
    biases = parameter_groups(model, OptimSection(lr=1.0, backbone_lr=0.1, rates={"*.bias": 3.0}))
    rates = {id(p): g["base_lr"] for g in biases for p in g["params"]}
    for name, parameter in model.named_parameters():
        base = 0.1 if name.startswith("backbone.") else 1.0
        assert rates[id(parameter)] == pytest.approx(base * (3 if name.endswith(".bias") else 1))


def test_the_backbone_of_a_model_within_a_model_has_its_rate():
    outer = torch.nn.ModuleDict({"detr": torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})})
    [group] = parameter_groups(outer, OptimSection(lr=1.0, backbone_lr=0.1))
    assert group["base_lr"] == 0.1


def test_schedules():
    step = OptimSection(drops=(0.5, 0.8))
    assert [round(rate_factor(step, 10**6, p), 6) for p in (0, 0.49, 0.5, 0.8, 1)] == [
        1, 1, 0.1, 0.01, 0.01,
    ]  # fmt: skip
    cosine = OptimSection(schedule="cosine", final=0.1, warmup_steps=9)
    assert rate_factor(cosine, 0, 0.0) == pytest.approx(0.1)
    assert rate_factor(cosine, 100, 0.5) == pytest.approx(0.55)
    assert rate_factor(cosine, 100, 2.0) == pytest.approx(0.1)


def test_the_average_follows_the_model():
    model, _, _ = build()
    average = AveragedModel(model, 0.9)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1
        model.norm.running_mean += 2
    expected = start.clone()
    for step in range(1, 4):
        average.update(model)
        decay = 0.9 * (1 - torch.exp(torch.tensor(-step / 200.0)))
        expected = decay * expected + (1 - decay) * (start + 1)
    torch.testing.assert_close(average.model.head.weight, expected)
    assert torch.equal(average.model.norm.running_mean, model.norm.running_mean)
    assert not any(p.requires_grad for p in average.model.parameters())
