"""Logistic regression whose memory is bounded: full passes over features that stay on disk.

The objective is scikit-learn's (`LogisticRegression(C, class_weight="balanced")`, lbfgs, no
penalty on the intercept), so where both fit, both give the same weights. A pass costs the reading
of all features, so all problems (tasks x strengths of regularisation) share each pass: every
problem has its own L-BFGS in its own thread, asks for its loss and gradient, and waits until all
open problems have asked.
"""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

TOLERANCE = 1e-5  # largest entry of the gradient of the mean loss (scikit-learn's default 1e-4)
MAX_STEPS = 500


@dataclass(frozen=True)
class Problem:
    """One logistic regression: ``target_N`` class numbers from 0, -1 for rows left out."""

    target_N: np.ndarray
    n_classes: int
    strength: float  # C

    @property
    def n_outputs(self) -> int:
        """Columns of weights: one for two classes, else one for each class."""
        return 1 if self.n_classes == 2 else self.n_classes

    def class_weights(self) -> np.ndarray:
        """What a row of each class counts, (K,): n / (classes x count of the class)."""
        count_K = np.bincount(self.target_N[self.target_N >= 0], minlength=self.n_classes)
        return count_K.sum() / (self.n_classes * np.maximum(count_K, 1))


def fit_by_passes(
    read_chunks: Callable,
    problems: list[Problem],
    mean_F: np.ndarray,
    scale_F: np.ndarray,
    device: torch.device,
    title: str = "fitting",
) -> list[np.ndarray]:
    """Weights and intercept of each problem, each (F + 1, outputs) float64, intercept last.

    ``read_chunks()`` yields (slice of rows, features (n, F) float32) for all rows once; they are
    standardised here, unknown ones to 0. The memory is that of the chunks, of the weights and of
    L-BFGS's ten vectors for each problem.
    """
    scaling = tuple(torch.from_numpy(a).to(device, torch.float32) for a in (mean_F, scale_F))
    asking = queue.SimpleQueue()  # (problem, its weights, or None when it is solved)
    answers = [queue.SimpleQueue() for _ in problems]  # (loss, gradient); None: the pass failed

    def solve(i: int) -> np.ndarray:
        def ask(weight_FK: np.ndarray) -> tuple[float, np.ndarray]:
            asking.put((i, weight_FK))
            answer = answers[i].get()
            if answer is None:
                raise _PassFailed
            return answer

        try:
            return _minimise(ask, (len(mean_F) + 1, problems[i].n_outputs))
        finally:
            asking.put((i, None))

    # The many small L-BFGS steps would wait for BLAS's threads; the pass has torch's own.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(desc=title, unit="pass") as bar,
        ThreadPoolExecutor(len(problems) or 1) as pool,
    ):
        solving = [pool.submit(solve, i) for i in range(len(problems))]
        n_open = len(problems)
        try:
            while n_open:
                asked = _collect(asking, n_open)
                n_open = len(asked)
                if asked:
                    bar.set_postfix_str(f"{n_open} of {len(problems)} open")
                    for i, answer in _one_pass(read_chunks, scaling, problems, asked).items():
                        answers[i].put(answer)
                    bar.update()
        except BaseException:
            for waiting in answers:
                waiting.put(None)
            raise
    return [solved.result() for solved in solving]


class _PassFailed(Exception):
    """Ends a problem's thread; the error itself is raised in the calling thread."""


def _minimise(
    ask: Callable[[np.ndarray], tuple[float, np.ndarray]], shape: tuple[int, int]
) -> np.ndarray:
    """The weights of least loss, from zeros on; ``ask`` gives loss and gradient at weights."""

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient_FK = ask(flat.reshape(shape))
        return value, gradient_FK.ravel()

    options = {"gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxiter": MAX_STEPS}
    start = np.zeros(shape).ravel()
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape)


def _collect(asking: queue.SimpleQueue, n_open: int) -> dict[int, np.ndarray]:
    """Weights of all problems that ask for another pass, once each open one has asked or ended."""
    asked = {}
    for _ in range(n_open):
        i, weight_FK = asking.get()
        if weight_FK is not None:
            asked[i] = weight_FK
    return asked


def _one_pass(
    read_chunks: Callable,
    scaling: tuple[torch.Tensor, torch.Tensor],
    problems: list[Problem],
    asked: dict[int, np.ndarray],
) -> dict[int, tuple[float, np.ndarray]]:
    """Loss and gradient of every problem that asked, from one pass over the features."""
    mean_F, scale_F = scaling
    device = mean_F.device
    # Products in float32, sums over the rows in float64, as the gradient is that of its leaf.
    coefficients = torch.from_numpy(np.concatenate(list(asked.values()), axis=1)).to(device)
    coefficients.requires_grad_()
    widths = [problems[i].n_outputs for i in asked]
    weights = {i: torch.from_numpy(problems[i].class_weights()).to(device) for i in asked}
    loss_P = torch.zeros(len(asked), dtype=torch.float64, device=device)
    for rows, x_NF in read_chunks():
        x_NF = (torch.as_tensor(x_NF, device=device) - mean_F) / scale_F
        x_NF = x_NF.nan_to_num_(nan=0, posinf=0, neginf=0)
        logit_NK = (x_NF @ coefficients[:-1].float()).double() + coefficients[-1]
        losses = []
        for i, outputs_NK in zip(asked, logit_NK.split(widths, dim=1), strict=True):
            if problems[i].n_outputs == 1:  # the logit of the first class is 0
                outputs_NK = F.pad(outputs_NK, (1, 0))
            target_N = torch.from_numpy(problems[i].target_N[rows]).to(device)
            losses.append(
                F.cross_entropy(outputs_NK, target_N, weights[i], ignore_index=-1, reduction="sum")
            )
        torch.stack(losses).sum().backward()
        loss_P += torch.stack(losses).detach()
    answers, gradients = {}, coefficients.grad.cpu().split(widths, dim=1)
    for i, loss, gradient in zip(asked, loss_P, gradients, strict=True):
        # Mean loss plus ridge penalty, as scikit-learn scales them.
        n = (problems[i].target_N >= 0).sum()  # balanced weights sum to the number of rows
        penalty, weight = 1 / (problems[i].strength * n), asked[i].copy()
        weight[-1] = 0  # none on the intercept
        value = float(loss) / n + 0.5 * penalty * (weight**2).sum()
        answers[i] = value, gradient.numpy() / n + penalty * weight
    return answers
