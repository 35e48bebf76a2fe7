"""The divergence of a student's similarities from those of a teacher."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metric_learning.losses.similaritydistillation import SimilarityDistillation

RNG = torch.Generator().manual_seed(0)
OURS, THEIRS = torch.randn(7, 5, generator=RNG), torch.randn(7, 9, generator=RNG)


def naive(student, teacher, temperature):
    """Eq. 3 to 6 of Passalis and Tefas, in plain loops."""

    def cosine(rows, i, j):
        return rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])

    def probability(rows, i, j):
        weights = {
            k: math.exp(cosine(rows, i, k) / temperature) for k in range(len(rows)) if k != i
        }
        return weights[j] / sum(weights.values())

    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            if i != j:
                wanted, found = probability(teacher, i, j), probability(student, i, j)
                total += wanted * math.log(wanted / found)
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_value_is_the_formula_s(temperature, count):
    student, teacher = OURS[:count].double(), THEIRS[:count].double()
    found = SimilarityDistillation(temperature)(student, teacher)
    expected = naive(student.numpy(), teacher.numpy(), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_value_is_torch_s_divergence_of_the_off_diagonal_rows():
    rows = [torch.nn.functional.normalize(each) for each in (OURS, THEIRS)]
    logits = [(each @ each.T / 0.1).fill_diagonal_(-1e9) for each in rows]
    expected = nn.KLDivLoss(reduction="batchmean")(
        logits[0].log_softmax(1).fill_diagonal_(0), logits[1].softmax(1)
    )
    torch.testing.assert_close(SimilarityDistillation(0.1)(OURS, THEIRS), expected)


def test_it_is_nothing_for_the_teacher_itself_whatever_the_lengths():
    embeddings = (3 * THEIRS).requires_grad_()
    loss = SimilarityDistillation()(embeddings, THEIRS)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6 and embeddings.grad.abs().max() < 1e-6


def test_gradient_reaches_the_student_alone():
    student = OURS.double().requires_grad_()
    teacher = THEIRS.double().requires_grad_()
    SimilarityDistillation()(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    loss = SimilarityDistillation(0.5)
    assert torch.autograd.gradcheck(lambda rows: loss(rows, teacher), (student,))


def test_half_precision_is_computed_in_full():
    loss = SimilarityDistillation()(OURS.half(), THEIRS.half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SimilarityDistillation()(OURS, THEIRS), rtol=1e-2, atol=1e-2)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="temperature above 0, found 0"):
        SimilarityDistillation(0.0)
    with pytest.raises(ValueError, match="targets of 7 images, found 6"):
        SimilarityDistillation()(OURS, THEIRS[:6])
