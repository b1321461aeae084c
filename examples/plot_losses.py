"""
The losses, and one of them in a training loop of your own
==========================================================

Every loss is a value for each sample at each label; nothing is averaged inside.
"""

from collections import defaultdict
from itertools import cycle

import matplotlib.pyplot as plt
import torch

from robustclf import list_losses, make_loss

# %%
# Ten classes, the probability :math:`p_y` of the given label on the axis, the rest spread evenly,
# and logits of mean zero: the loss, and its slope in :math:`p_y`. Each loss is shifted to a minimum
# of 0 and scaled to 1 at :math:`p_y = 0.05`, since a constant changes no gradient and a factor is a
# matter of the learning rate.

families = {  # by the module of the loss
    "cross_entropy": "Cross entropy and kin",
    "huberised": "Huberised, truncated",
    "symmetric": "Symmetric",
    "asymmetric": "Asymmetric",
    "divergences": "Divergences",
    "active_negative": "Normalised",
    "_base": "Sums",
    "label_robust": "Label-robust",
    "scores": "Of the logits",
    "evidential": "Of the logits",
    "transforms": "Of the logits",
}

n_classes = 10
p = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
p.requires_grad_()
logits = torch.log(p / ((1 - p) / (n_classes - 1)))[:, None] * torch.eye(n_classes)[0]
logits = logits - logits.mean(1, keepdim=True)
start = int((p < 0.05).sum())


def curve(loss):
    """Scaled values and slopes of a loss."""
    values = loss(logits, torch.tensor([0]))
    (slopes,) = torch.autograd.grad(values.sum(), p, retain_graph=True)
    lowest = values.min()
    scale = values[start] - lowest
    return torch.stack([(values - lowest) / scale, slopes / scale]).detach()


# %%
# Left out are random losses, whose value means nothing, those whose form is learned with the
# network, and those whose curve, at their defaults, is that of another:

curves, panels = {}, defaultdict(dict)
for alias in list_losses():
    loss = make_loss(alias).build(n_classes)
    if loss.stochastic or list(loss.parameters()):
        print(f"{alias}: {'random' if loss.stochastic else 'learned'}")
        continue
    new = curve(loss)
    same = [other for other, old in curves.items() if torch.allclose(new, old, atol=1e-6)]
    if same:
        print(f"{alias}: as {same[0]}")
        continue
    curves[alias] = new
    module = type(loss).__module__.rpartition(".")[2]
    panels[families.get(module, module)][alias] = "-" if loss.bounded else "--"

# %%
# Dashed losses are unbounded: one wrong label that the network does not believe can cost any
# amount. What a label pulls with is the slope. That of cross entropy is steepest where the network
# believes the label least, left of chance (the grey line), which is where wrong labels end up; a
# robust loss pulls no harder there than elsewhere, or lets go. A loss that is a step looks at the
# order of the probabilities alone.

order = sorted(panels, key=[*families.values(), *panels].index)
colors = [*plt.colormaps["tab10"].colors, "black", "gold"]
figure, axes = plt.subplots(
    len(panels), 2, figsize=(9, 2.1 * len(panels)), sharex=True, layout="constrained"
)
for title, (left, right) in zip(order, axes, strict=True):
    for (alias, style), color in zip(panels[title].items(), cycle(colors), strict=False):
        for ax, y in zip((left, right), curves[alias], strict=True):
            ax.plot(p.detach(), y, style, color=color, label=alias, linewidth=1.5)
    left.set(ylim=(-0.05, 1.6), xlim=(0, 1))
    left.set_title(title, loc="left", fontsize="medium")
    right.set(ylim=(-4, 0.4))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
for ax in axes.flat:
    ax.axvline(1 / n_classes, color="0.8", linewidth=1, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("scaled loss")
axes[0, 1].set_ylabel("its slope")
for ax in axes[-1]:
    ax.set_xlabel("$p_y$")

# %%
# In PyTorch: logits and targets go in, one value per sample comes out, and the mean is yours.
# A target may also be a distribution over the classes.

torch.manual_seed(0)
x = torch.randn(600, 2)
clean = (x[:, 0] > 0).long()
noisy = torch.where(torch.rand(600) < 0.3, 1 - clean, clean)


def train(loss):
    """Fit a small network to the noisy labels."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(network(x), noisy).mean()
        value.backward()
        optimizer.step()
    agree = (network(x).argmax(1) == clean).float().mean()
    print(f"{loss}\n{value:.4f}, agrees with {agree:.1%} of the clean labels")


train(make_loss("gce", q=0.8))

# %%
# ``loss.parameters()`` is empty for most losses. This one learns with the network what its
# probabilities are; ``build`` makes the parameters, for a number of classes.

train(make_loss("legendretron").build(n_classes=2))

# %%
# Losses add up, and the sum is a loss.

train(2 * make_loss("nce") + make_loss("mae"))
