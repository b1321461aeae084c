"""
The losses, and one of them in a training loop of your own
==========================================================

Every loss is a value for each sample at each label; nothing is averaged inside.
"""

import matplotlib.pyplot as plt
import torch

from robustclf import list_losses, make_loss

# %%
# Ten classes, the probability :math:`p_y` of the given label on the axis, the rest spread evenly.
# Each curve is scaled to 1 at chance. Dashed losses are unbounded: one wrong label that the network
# does not believe can cost any amount.

n_classes = 10
p = torch.linspace(0.002, 0.998, 500)
logits = torch.zeros(len(p), n_classes)
logits[:, 0] = torch.log(p * (n_classes - 1) / (1 - p))
chance, label = torch.zeros(1, n_classes), torch.tensor([0])

figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
colors = plt.colormaps["tab20"].colors
for i, alias in enumerate(list_losses()):
    loss = make_loss(alias)
    value = loss(logits, label) / loss(chance, label)
    ax.plot(p, value, "-" if loss.bounded else "--", color=colors[i % 20], label=alias)
ax.set(xlabel="$p_y$", ylabel="loss / loss at chance", ylim=(0, 2.2), xlim=(0, 1))
ax.legend(frameon=False, ncols=2)
ax.spines[["top", "right"]].set_visible(False)

# %%
# In PyTorch: logits and targets go in, one value per sample comes out, and the mean is yours.
# A target may also be a distribution over the classes.

torch.manual_seed(0)
x = torch.randn(600, 2)
clean = (x[:, 0] > 0).long()
noisy = torch.where(torch.rand(600) < 0.3, 1 - clean, clean)

network = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
loss = make_loss("gce", q=0.8)
for _ in range(300):
    optimizer.zero_grad()
    value = loss(network(x), noisy).mean()
    value.backward()
    optimizer.step()

print(f"{loss}: {value:.4f}")
print(f"agrees with {(network(x).argmax(1) == clean).float().mean():.1%} of the clean labels")
