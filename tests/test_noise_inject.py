import warnings

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.datasets import make_blobs
from sklearn.metrics import confusion_matrix

from robustclf.noise.inject import NOISE_KINDS, inject_noise
from robustclf.noise.matrices import (
    check_transition,
    convert_rate,
    pair_transition,
    uniform_transition,
)

SIZES = [301, 203, 53, 440]
X, Y = make_blobs(SIZES, centers=None, n_features=5, cluster_std=4, random_state=0)
ASYMMETRIC = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0, 0.9, 0.1, 0], [0.2, 0.25, 0.55, 0], [0.013, 0.007, 0, 0.98]]
)
AT_A_RATE = ["symmetric", "pair", "class_dependent", "instance", "feature_noise", "adversarial"]


def inject(kind, y=Y, rate=0.23, **options):
    """Give each kind what it needs."""
    needs = {"matrix": {"transition": ASYMMETRIC}}
    if kind == "open_set":
        needs[kind] = {"classes": np.unique(y)[:2]}
    return inject_noise(y, kind, rate, X=X, **({"random_state": 0} | needs.get(kind, {}) | options))


def of_each_class(values):
    return np.array([values[k == Y].sum() for k in range(4)])


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_mask_marks_what_changed(kind):
    before = Y.copy()
    noisy, wrong = inject(kind, return_mask=True)
    np.testing.assert_array_equal(wrong, noisy != Y)
    np.testing.assert_array_equal(Y, before)
    assert wrong.dtype == bool
    assert noisy.dtype == Y.dtype
    assert noisy is not Y
    assert set(noisy) <= set(Y)
    assert 0 < wrong.mean() < 0.6


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_random_state_governs_all_draws(kind):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(inject(kind), inject(kind))
    same = np.random.RandomState(0)
    np.testing.assert_array_equal(inject(kind), inject(kind, random_state=same))
    assert (inject(kind, random_state=1) != inject(kind)).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("dtype", [np.int8, np.float32, "<U5", object])
def test_labels_keep_their_type(kind, dtype):
    names = np.array([1, 2, 4, 8]).astype(str if dtype is object else dtype).astype(dtype)
    noisy = inject(kind, y=names[Y])
    assert noisy.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(noisy, names[inject(kind)])


@pytest.mark.parametrize("kind", AT_A_RATE)
@pytest.mark.parametrize("rate", [0, 0.01, 0.23, 0.5, 0.9])
def test_share_of_wrong_labels_is_exact(kind, rate):
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes that get lost
            _, wrong = inject(kind, rate=rate, random_state=seed, return_mask=True)
        assert abs(wrong.sum() - rate * len(Y)) <= 0.5 + 1e-9


@pytest.mark.parametrize("kind", [kind for kind in AT_A_RATE if kind != "class_dependent"])
def test_count_in_each_class_is_exact_on_request(kind):
    _, wrong = inject(kind, exact_per_class=True, return_mask=True)
    assert (abs(of_each_class(wrong) - 0.23 * np.array(SIZES)) <= 0.5 + 1e-9).all()
    _, wrong = inject(kind, return_mask=True)
    assert (abs(of_each_class(wrong) - 0.23 * np.array(SIZES)) > 1).any()


def test_lists_and_binary_strings():
    noisy = inject_noise(["n", "yes", "n", "n"], rate=0.25, random_state=0)
    assert noisy.dtype == "<U3"
    assert (noisy != ["n", "yes", "n", "n"]).sum() == 1


def test_strings_get_longer_for_classes_that_y_lacks():
    with pytest.warns(UserWarning, match="no row is labelled 'a' any more"):
        noisy = inject_noise(["a", "b"], "pair", 0.9, classes=["a", "b", "much"], random_state=0)
    assert noisy.tolist() == ["b", "much"]


def test_symmetric_is_uniform_over_the_others():
    y = np.repeat([0, 1, 2, 3], 3000)
    noisy = inject_noise(y, rate=0.3, random_state=0)
    counts = confusion_matrix(y, noisy)
    off = counts[~np.eye(4, dtype=bool)]
    assert chisquare(off).pvalue > 0.01
    assert chisquare(counts.diagonal()).pvalue > 0.01


def test_symmetric_chooses_rows_alike():
    hits = sum(inject_noise([0, 1] * 5, rate=0.3, random_state=s) != [0, 1] * 5 for s in range(500))
    assert hits.sum() == 1500
    assert chisquare(hits).pvalue > 0.01


def test_all_draws_from_all_classes():
    y = np.repeat([0, 1, 2], 4000)
    noisy = inject_noise(y, rate=0.6, convention="all", exact_per_class=True, random_state=1)
    drawn = confusion_matrix(y, noisy) - 1600 * np.eye(3)
    for counts in drawn:
        assert counts.sum() == 2400
        assert chisquare(counts).pvalue > 0.01
    rates = [
        (inject_noise(y, rate=0.6, convention="all", random_state=s) != y).mean() for s in range(20)
    ]
    assert np.mean(rates) == pytest.approx(convert_rate(0.6, 3, "rest"), abs=0.004)


@pytest.mark.parametrize("kind", ["class_dependent", "feature_noise"])
def test_all_leaves_some_labels_of_other_kinds(kind):
    _, wrong = inject(kind, rate=0.4, convention="all", return_mask=True)
    assert wrong.mean() == pytest.approx(convert_rate(0.4, 4, "rest"), abs=0.03)


def test_pair_goes_to_the_next_class():
    noisy, wrong = inject("pair", return_mask=True)
    np.testing.assert_array_equal(noisy[wrong], (Y[wrong] + 1) % 4)


def test_matrix_follows_the_transition():
    y = np.repeat([0, 1, 2, 3], 5000)
    noisy = inject_noise(y, "matrix", transition=ASYMMETRIC, random_state=0)
    counts = confusion_matrix(y, noisy)
    for k, row in enumerate(ASYMMETRIC):
        assert counts[k, row == 0].sum() == 0
        assert chisquare(counts[k, row > 0], 5000 * row[row > 0]).pvalue > 0.01


def test_matrix_by_largest_remainders():
    """301 rows at .7, .1, .1, .1 are 210.7, 30.1, 30.1, 30.1: one row is left, for the first."""
    counts = confusion_matrix(Y, inject("matrix", exact_per_class=True))
    assert counts[0].tolist() == [211, 30, 30, 30]
    assert counts[1].tolist() == [0, 183, 20, 0]  # 182.7, 20.3
    assert counts[2].tolist() == [11, 13, 29, 0]  # 10.6, 13.25, 29.15
    assert counts[3].tolist() == [6, 3, 0, 431]  # 5.72, 3.08, 431.2
    assert (inject("matrix", exact_per_class=True, random_state=1) != inject("matrix")).any()


@pytest.mark.parametrize(
    "rate", [{0: 0.0, 1: 0.5, 2: 0.3, 3: 0.1}, [0, 0.5, 0.3, 0.1], np.array([0, 0.5, 0.3, 0.1])]
)
def test_class_dependent_follows_the_rates(rate):
    _, wrong = inject("class_dependent", rate=rate, return_mask=True)
    expected = np.array([0, 0.5, 0.3, 0.1]) * SIZES
    assert (abs(of_each_class(wrong) - expected) < 1).all()
    assert abs(wrong.sum() - expected.sum()) <= 0.5
    _, wrong = inject("class_dependent", rate=rate, return_mask=True, exact_per_class=True)
    assert (abs(of_each_class(wrong) - expected) <= 0.5).all()


def test_class_dependent_draws_rates_around_one_number():
    rates = []
    for seed in range(50):
        _, wrong = inject("class_dependent", rate=0.2, return_mask=True, random_state=seed)
        assert wrong.sum() == round(0.2 * len(Y))
        rates.append(of_each_class(wrong) / SIZES)
    assert 0.05 < np.std(rates) < 0.12
    assert (abs(np.array(rates) - 0.2) < 0.3).all()


def test_instance_noise_depends_on_the_row():
    """Many equal columns make the softmax an argmax of x W: one target for each sign of x."""
    rng = np.random.default_rng(0)
    side = np.repeat([-1.0, 1.0], 200)
    wide = np.repeat(side[:, None], 10_000, axis=1)
    y = rng.integers(5, size=400)
    noisy, wrong = inject_noise(y, "instance", 0.5, X=wide, return_mask=True, random_state=1)
    for k in range(5):
        rows = [wrong & (y == k) & (side == s) for s in (-1, 1)]
        shares = [np.bincount(noisy[r], minlength=5) / r.sum() for r in rows]
        assert min(share.max() for share in shares) > 0.8
        assert shares[0].argmax() != shares[1].argmax()


def test_instance_noise_draws_from_a_softmax():
    """Of two targets at x = 1 and x = -1 the odds are inverse; at x = 0 all are alike."""
    x, y = np.repeat([-1.0, 1.0], 20_000), np.tile([0, 1, 2, 2], 10_000)
    for seed in range(3):
        noisy = inject_noise(y, "instance", 0.5, X=x[:, None], random_state=seed)
        shares = [np.mean(noisy[(y == 2) & (noisy != 2) & (x == side)]) for side in (-1, 1)]
        assert sum(shares) == pytest.approx(1, abs=0.04)
    off = confusion_matrix(y, inject_noise(y, "instance", X=0 * x[:, None], random_state=0))
    assert chisquare(off[2, :2]).pvalue > 0.01
    assert chisquare(off[0, 1:]).pvalue > 0.01


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_feature_noise_grows_along_one_direction(rate):
    line = np.random.default_rng(0).permutation(4000)
    y = np.random.default_rng(1).integers(3, size=4000)
    noisy = inject_noise(y, "feature_noise", rate, X=line[:, None], random_state=0)
    wrong = (noisy != y)[np.argsort(line)].reshape(10, 400).mean(axis=1)
    rank = (np.arange(10) + 0.5) / 10
    rank = min(rank, rank[::-1], key=lambda r: abs(wrong - r).sum())
    expected = 2 * rate * rank if rate <= 0.5 else 1 - 2 * (1 - rate) * (1 - rank)
    np.testing.assert_allclose(wrong, expected, atol=0.08)


def test_adversarial_flips_the_smallest_margins():
    """Two clouds on a line: the rows nearest the middle, whatever their side, change labels."""
    x = np.concatenate([np.linspace(-10, -1, 50), np.linspace(1, 10, 50)])
    y = np.repeat(["left", "right"], 50)
    noisy = inject_noise(y, "adversarial", 0.1, X=x[:, None], random_state=0)
    assert set(np.flatnonzero(noisy != y)) == set(range(45, 55))


def test_adversarial_goes_to_the_neighbouring_class():
    x = np.arange(300.0)
    y = np.repeat([0, 1, 2], 100)
    noisy, wrong = inject_noise(
        y, "adversarial", 0.1, X=np.column_stack([x, x**2]), return_mask=True, random_state=0
    )
    assert (abs(x[wrong, None] - [99.5, 199.5]).min(axis=1) < 25).all()
    nearest = np.where(x < 150, np.where(y == 0, 1, 0), np.where(y == 1, 2, 1))
    np.testing.assert_array_equal(noisy[wrong], nearest[wrong])


def test_open_set_labels_only_rows_without_a_class():
    y = np.repeat(["a", "b", "c", "d"], 1000)
    noisy, wrong = inject_noise(y, "open_set", classes=["b", "a"], return_mask=True, random_state=0)
    np.testing.assert_array_equal(wrong, y > "b")
    for outside in "cd":
        assert chisquare(np.unique(noisy[y == outside], return_counts=True)[1]).pvalue > 0.01
    assert set(noisy) == {"a", "b"}


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("exact", [False, True])
def test_groups_have_rates_of_their_own(kind, exact):
    groups = np.random.default_rng(0).choice(["f", "m", "x"], size=len(Y), p=[0.5, 0.3, 0.2])
    rates = {"m": 0.4, "f": 0.1, "x": 0}
    _, wrong = inject(kind, rate=rates, groups=groups, return_mask=True, exact_per_class=exact)
    for group, rate in rates.items():
        rows = groups == group
        assert abs(wrong[rows].sum() - rate * rows.sum()) < (4 if exact else 1)
    assert not wrong[groups == "x"].any()


def test_lost_classes_are_named():
    y = np.repeat(["a", "b", "c"], [40, 2, 2])
    with pytest.warns(UserWarning, match=r"no row is labelled 'b' any more"):
        inject_noise(y, "matrix", transition=[[1, 0, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("convention", ["rest", "all"])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_uniform_transition(convention, n_classes):
    T = uniform_transition(0.3, n_classes, convention)
    np.testing.assert_allclose(T.sum(axis=1), 1, rtol=1e-15)
    if convention == "all":
        expected = 0.7 * np.eye(n_classes) + 0.3 / n_classes
    else:
        expected = np.where(np.eye(n_classes), 0.7, 0.3 / (n_classes - 1))
    np.testing.assert_allclose(T, expected, rtol=1e-14)


def test_pair_transition_is_what_pair_does():
    y = np.repeat(np.arange(5), 100)
    noisy = inject_noise(y, "pair", 0.3, exact_per_class=True, random_state=0)
    np.testing.assert_allclose(
        confusion_matrix(y, noisy) / 100, pair_transition(0.3, 5), atol=1e-15
    )


@pytest.mark.parametrize("n_classes", [2, 3, 7, 100])
def test_convert_rate_is_a_pair_of_inverses(n_classes):
    for rate in np.linspace(0, (n_classes - 1) / n_classes, 23):
        whole = convert_rate(rate, n_classes, to="all")
        assert 0 <= whole <= 1
        assert convert_rate(whole, n_classes, to="rest") == pytest.approx(rate, rel=1e-15)
    for rate in (0.1, 0.6, 0.99):
        np.testing.assert_allclose(
            uniform_transition(rate, n_classes, "all"),
            uniform_transition(convert_rate(rate, n_classes, to="rest"), n_classes),
            rtol=1e-14,
        )


@pytest.mark.parametrize("rate", [-0.1, 1, 1.2, np.nan])
@pytest.mark.parametrize("kind", AT_A_RATE)
def test_rates_outside_the_unit_interval(kind, rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got"):
        inject(kind, rate=rate)


def bad(message, kind="symmetric", y=Y, **options):
    return pytest.param(kind, y, options, message, id=message)


@pytest.mark.parametrize(
    ("kind", "y", "options", "message"),
    [
        bad("unknown kind of noise .* did you mean 'symmetric'", kind="symetric"),
        bad("unknown convention 'rst', .* did you mean 'rest'", convention="rst"),
        bad("'symmetric' does not use transition; matrix do", transition=ASYMMETRIC),
        bad("'instance' does not use groups; symmetric, pair do", kind="instance", groups=Y),
        bad("'pair' does not use convention", kind="pair", convention="all"),
        bad("'open_set' does not use exact_per_class", kind="open_set", exact_per_class=True),
        bad("'matrix' needs transition, got None", kind="matrix", transition=None),
        bad("'open_set' needs classes, got None", kind="open_set", classes=None),
        bad("rate must be one number here", rate={0: 0.1}),
        bad("rate must be one number here, got", rate=[0.1, 0.2, 0.3, 0.4]),
        bad("groups need a mapping from group to rate, got rate=0.23", groups=Y),
        bad("groups has 3 entries", groups=[0, 1, 2], rate={0: 0.1}),
        bad("rate lacks group 3", groups=Y, rate={0: 0.1, 1: 0.1, 2: 0.1}),
        bad(
            "class in rate: 'wet' is not one of .*; did you mean 'west'",
            kind="class_dependent",
            y=np.array(["east", "west"] * 50),
            rate={"east": 0.1, "wet": 0.2},
        ),
        bad(r"rate has shape \(3,\), expected \(4,\)", kind="class_dependent", rate=[0.1] * 3),
        bad(r"rate must be in .*1.5", kind="class_dependent", rate=[0.1, 0.2, 0.1, 1.5]),
        bad("4 x 4 for 2 classes. Pass classes", kind="matrix", y=Y % 2),
        bad("Its columns do: pass transition.T", kind="matrix", transition=ASYMMETRIC.T),
        bad("class that remains: 9 is not one of", kind="open_set", classes=[0, 9]),
        bad("none to change", kind="open_set", classes=range(4)),
        bad("two classes, got", y=np.zeros(10, dtype=int)),
        bad(r"beyond the classes \[0, 1\]", classes=[0, 1]),
        bad("no label in 1 of 3 rows", y=["a", None, "b"]),
        bad("inconsistent numbers of samples", kind="adversarial", y=Y[:-1]),
        bad("two rows each, got the counts .*4: 1", kind="adversarial", y=np.append(Y[1:], 4)),
    ],
)
def test_errors(kind, y, options, message):
    with pytest.raises(ValueError, match=message):
        inject(kind, y=y, **options)


@pytest.mark.parametrize("kind", ["instance", "feature_noise", "adversarial"])
def test_features_are_needed(kind):
    with pytest.raises(ValueError, match="needs X, got None"):
        inject_noise(Y, kind)
    with pytest.raises(ValueError, match="could not convert string to float"):
        inject_noise(["a", "b"], kind, X=[["red"], ["blue"]])


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        ([0.5, 0.5], r"must be square, .* got shape \(2,\)"),
        ([[0.5, 0.5]], r"must be square, .* got shape \(1, 2\)"),
        ([[0.5, 0.5], [0.5, 0.4]], r"sum to 1, got \[0.5, 0.4\] with sum 0.9 in row 1"),
        ([[1.5, -0.5], [0, 1]], "in row 0"),
        ([[1, 0], [np.nan, 1]], "in row 1"),
    ],
)
def test_transitions_that_cannot_be(transition, message):
    with pytest.raises(ValueError, match=message):
        check_transition(transition)


def test_rounded_transitions_are_taken():
    T = check_transition([[0.333, 0.333, 0.333], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(T.sum(axis=1), 1, rtol=1e-15)


def test_numbers_of_classes_and_rates_that_cannot_be():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        uniform_transition(0.1, 1)
    with pytest.raises(ValueError, match="at least 2, got 0"):
        pair_transition(0.1, 0)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        pair_transition(1, 3)
    with pytest.raises(ValueError, match="did you mean 'rest'"):
        convert_rate(0.1, 3, to="rst")
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got -1"):
        convert_rate(-1, 3)
    with pytest.raises(ValueError, match=r"above .* which"):
        convert_rate(0.7, 3, to="all")
