"""Logistic regression whose memory is bounded: full passes over features that stay on disk.

The objective is scikit-learn's (`LogisticRegression(C, class_weight="balanced")`, lbfgs, no
penalty on the intercept), so where both fit, both give the same weights. A pass costs the reading
of all features, so all problems (tasks x strengths of regularisation) share each pass: every
problem has its own L-BFGS in its own thread, asks for its loss and gradient, and waits until all
open problems have asked.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
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


def balanced_weights(target_N: np.ndarray, n_classes: int) -> np.ndarray:
    """Weight of each row, (N,): n / (classes x count of its class); 0 where target is -1."""
    count_K = np.bincount(target_N[target_N >= 0], minlength=n_classes)
    weight_K = count_K.sum() / (n_classes * np.maximum(count_K, 1))
    return np.where(target_N >= 0, weight_K[target_N], 0.0)


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
    n_features = len(mean_F)
    scaling = tuple(torch.from_numpy(a).to(device, torch.float32) for a in (mean_F, scale_F))
    weights = [balanced_weights(p.target_N, p.n_classes) for p in problems]
    shared = _SharedPasses(len(problems))

    def solve(i: int) -> None:
        shape = (n_features + 1, problems[i].n_outputs)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = shared.ask(i, flat.reshape(shape))
            return value, gradient.ravel()

        options = {"gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxiter": MAX_STEPS}
        try:
            found = minimize(
                loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options
            )
            shared.solutions[i] = found.x.reshape(shape)
        except _PassFailed:
            return
        finally:
            shared.leave()

    threads = [threading.Thread(target=solve, args=(i,), daemon=True) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    try:
        # The many small L-BFGS steps would wait for BLAS's threads; the pass has torch's own.
        with threadpool_limits(1, user_api="blas"), tqdm(desc=title, unit="pass") as bar:
            while asked := shared.next_round():
                bar.set_postfix_str(f"{len(asked)} of {len(problems)} open")
                shared.answer(_one_pass(read_chunks, scaling, problems, weights, asked))
                bar.update()
    except BaseException:
        shared.fail()
        raise
    finally:
        for thread in threads:
            thread.join()
    return [shared.solutions[i] for i in range(len(problems))]


@dataclass
class _SharedPasses:
    """Where the problems' threads meet the pass over the data."""

    n_open: int
    asked: dict[int, np.ndarray] = field(default_factory=dict)
    answers: dict[int, tuple] = field(default_factory=dict)
    solutions: dict[int, np.ndarray] = field(default_factory=dict)
    failed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, i: int, weight_FK: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient at these weights, once a pass has been made for all that ask."""
        with self.changed:
            self.asked[i] = weight_FK
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.failed or i in self.answers)
            if self.failed:
                raise _PassFailed
            return self.answers.pop(i)

    def leave(self) -> None:
        with self.changed:
            self.n_open -= 1
            self.changed.notify_all()

    def next_round(self) -> dict[int, np.ndarray]:
        """Weights of all open problems once each has asked; empty when none is open."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.asked) == self.n_open)
            return dict(self.asked)

    def answer(self, answers: dict[int, tuple]) -> None:
        with self.changed:
            self.asked.clear()
            self.answers.update(answers)
            self.changed.notify_all()

    def fail(self) -> None:
        with self.changed:
            self.failed = True
            self.changed.notify_all()


class _PassFailed(Exception):
    """Ends the problems' threads; the error itself is raised in the calling thread."""


def _one_pass(
    read_chunks: Callable,
    scaling: tuple[torch.Tensor, torch.Tensor],
    problems: list[Problem],
    weights: list[np.ndarray],
    asked: dict[int, np.ndarray],
) -> dict[int, tuple[float, np.ndarray]]:
    """Loss and gradient of every problem that asked, from one pass over the features."""
    mean_F, scale_F = scaling
    device = mean_F.device
    coefficients = np.concatenate([asked[i] for i in asked], axis=1)
    weight_FK = torch.from_numpy(coefficients[:-1]).to(device, torch.float32)
    bias_K = torch.from_numpy(coefficients[-1]).to(device, torch.float64)
    gradient_FK = torch.zeros(weight_FK.shape, dtype=torch.float64, device=device)
    bias_gradient_K = torch.zeros_like(bias_K)
    losses = dict.fromkeys(asked, 0.0)
    for rows, x_NF in read_chunks():
        x_NF = (torch.from_numpy(x_NF).to(device) - mean_F) / scale_F
        x_NF = x_NF.nan_to_num_(nan=0, posinf=0, neginf=0)
        logit_NK = (x_NF @ weight_FK).double() + bias_K
        errors, column = [], 0
        for i in asked:
            outputs = logit_NK[:, column : column + problems[i].n_outputs]
            column += problems[i].n_outputs
            loss, error = _loss_and_error(
                outputs,
                torch.from_numpy(problems[i].target_N[rows]).to(device),
                torch.from_numpy(weights[i][rows]).to(device),
            )
            losses[i] += float(loss)
            errors.append(error)
        error_NK = torch.cat(errors, dim=1)
        gradient_FK += (x_NF.T @ error_NK.float()).double()
        bias_gradient_K += error_NK.sum(0)
    gradient = torch.cat([gradient_FK, bias_gradient_K[None]]).cpu().numpy()
    answers, column = {}, 0
    for i, coefficient in asked.items():
        columns = slice(column, column := column + problems[i].n_outputs)
        answers[i] = _penalised(losses[i], gradient[:, columns], coefficient, problems[i])
    return answers


def _loss_and_error(outputs_NK, target_N, weight_N) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the log loss and its derivative by the outputs; rows of weight 0 give 0."""
    if outputs_NK.shape[1] == 1:
        logit_N, is_event_N = outputs_NK[:, 0], (target_N == 1).double()
        loss_N = torch.nn.functional.softplus(logit_N) - logit_N * is_event_N
        error_NK = (torch.sigmoid(logit_N) - is_event_N)[:, None]
    else:
        logp_NK = torch.log_softmax(outputs_NK, 1)
        one_hot_NK = torch.nn.functional.one_hot(target_N.clamp(min=0), outputs_NK.shape[1])
        loss_N = -(logp_NK * one_hot_NK).sum(1)
        error_NK = logp_NK.exp() - one_hot_NK
    return (loss_N * weight_N).sum(), error_NK * weight_N[:, None]


def _penalised(
    loss: float, gradient: np.ndarray, coefficient: np.ndarray, problem: Problem
) -> tuple[float, np.ndarray]:
    """Mean loss plus ridge penalty, as scikit-learn scales them, and its gradient."""
    n = (problem.target_N >= 0).sum()  # balanced weights sum to the number of rows
    penalty = 1 / (problem.strength * n)
    weight = np.concatenate([coefficient[:-1], np.zeros((1, coefficient.shape[1]))])
    return loss / n + 0.5 * penalty * (weight**2).sum(), gradient / n + penalty * weight
