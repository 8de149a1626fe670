"""AdvBN's training step written straight from the formula, without any of the package's code: what `advbn
bench step` compares with.

Eager, one loop, contiguous tensors, a dual batch norm that holds two batch norms, both losses in one
backward pass, plain SGD."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class TwoBatchNorms(nn.Module):
    "Two batch norms and a word that says which of them is used."

    def __init__(self, norm):
        super().__init__()
        self.clean, self.adversarial, self.branch = norm, copy.deepcopy(norm), "clean"

    def forward(self, x):
        return self.clean(x) if self.branch == "clean" else self.adversarial(x)


def double(module):
    "Replace every batch norm of `module` by two."
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, TwoBatchNorms(child))
        else:
            double(child)


def use(module, branch):
    for m in module.modules():
        if isinstance(m, TwoBatchNorms):
            m.branch = branch


class ResNetHead(nn.Module):
    "A torchvision ResNet after its first stage."

    def __init__(self, model):
        super().__init__()
        self.layer2, self.layer3, self.layer4, self.avgpool, self.fc = (
            model.layer2,
            model.layer3,
            model.layer4,
            model.avgpool,
            model.fc,
        )

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.layer4(self.layer3(self.layer2(x)))), 1))


class Reference:
    "A ResNet cut after layer1, its optimiser, and one training step."

    def __init__(self, model, eps=1.1, step_size=0.2, steps=6, lr=0.01):
        self.stem = (
            nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
            .eval()
            .requires_grad_(False)
        )
        self.head = ResNetHead(model)
        double(self.head)
        self.eps, self.step_size, self.steps = eps, step_size, steps
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)

    def attack(self, features, targets):
        use(self.head, "adversarial")
        self.head.eval()
        mean = features.mean((0, 2, 3), keepdim=True)
        mean_scale, std_scale = torch.ones_like(mean), torch.ones_like(mean)
        for _ in range(self.steps):
            mean_scale.requires_grad_(), std_scale.requires_grad_()
            perturbed = torch.relu((features - mean) * std_scale + mean * mean_scale)
            loss = F.cross_entropy(self.head(perturbed), targets)
            gradients = torch.autograd.grad(loss, (mean_scale, std_scale))
            mean_scale, std_scale = (
                torch.clamp(factor.detach() + self.step_size * g.sign(), 1 - self.eps, 1 + self.eps)
                for factor, g in zip((mean_scale, std_scale), gradients)
            )
        self.head.train()
        return torch.relu((features - mean) * std_scale + mean * mean_scale).detach()

    def step(self, images, targets):
        with torch.no_grad():
            features = self.stem(images)
        self.head.train()
        perturbed = self.attack(features, targets)
        use(self.head, "clean")
        clean = F.cross_entropy(self.head(features), targets)
        use(self.head, "adversarial")
        adversarial = F.cross_entropy(self.head(perturbed), targets)
        self.optimizer.zero_grad()
        (clean + adversarial).backward()
        self.optimizer.step()
        return clean.item(), adversarial.item()
