"""RobustClassifier: validate, encode, fit the stack of networks or the mixture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length
from skorch.callbacks import Callback

from robustclf._auto import BUDGETS, Auto
from robustclf._build import (
    Method,
    Prepared,
    check_classes,
    encode,
    fit_encoder,
    held_share,
    in_memory,
    load_rows,
    make_encoder,
    make_net,
    open_rows,
    plan_rows,
    training_set,
)
from robustclf._distributed import common_random_state
from robustclf._dynamics import DynamicsRecorder
from robustclf._fitted import Fitted
from robustclf._net import SCHEDULES
from robustclf._params import NestedParamsMixin
from robustclf._random import random_states, seeded
from robustclf._rows import (
    as_labels,
    encode_labels,
    group_codes,
    known_classes,
    row_mask,
    split_labels,
)
from robustclf.losses import Loss
from robustclf.recipes import RECIPES
from robustclf.stopping import Stopping
from robustclf.strategies import Strategy


def _takes_chunks(clf: Any) -> bool:
    if hasattr(clf, "mixture_"):
        raise AttributeError(
            "partial_fit cannot go on with the mixture of models that loss='auto' fitted: start "
            "with partial_fit, or set a loss such as 'gce' before fit."
        )
    return True


class RobustClassifier(Fitted, NestedParamsMixin, ClassifierMixin, BaseEstimator):
    r"""Classifier for tables with wrong labels: a portfolio, or networks with one robust loss.

    By default models of several kinds are weighed by the labels they did not learn from. Any loss
    but ``"auto"`` is that of a single stack of networks. Training minimises, with f the network,
    t the targets, w the weights and R a penalty,

    .. math:: \frac{1}{n} \sum_i w_i \, \ell(f(x_i), t_i) + R .

    ``loss`` chooses :math:`\ell`, ``strategy`` edits t, w, R or the rows, ``optimizer`` takes the
    step; any of them goes with any other. A part named by an alias takes parameters of its own
    after two underscores: ``RobustClassifier(loss="gce", loss__q=0.5)``.

    Parameters
    ----------
    loss : str or Loss, default="auto"
        ``"auto"`` fits a portfolio of networks, forests and kernel machines and weighs them by the
        labels that they did not learn from, see the guide; what they share (``strategy``,
        ``class_weight``, ...) is kept, and so is ``hidden``, ``lr``, ``dropout``,
        ``weight_decay``, ``module``, ``numeric_embedding``, ``warm_up`` or ``max_epochs`` where
        it is not at its default. In ``partial_fit`` and for data larger than memory, where no
        portfolio can be weighed, ``"auto"`` is ``"gce"``. Any other loss fits a single stack of
        networks, several times as fast: one of :func:`list_losses`, or an instance such as
        ``2 * make_loss("nce") + make_loss("mae")``.
    budget : {"fast", "balanced", "best"}, default="balanced"
        How many models ``loss="auto"`` tries; no other loss reads it.
    strategy : str, Strategy, list of them or None, default=None
        One of :func:`list_strategies`, an instance, or several that act in their order.
    n_members : int, default=1
        Networks trained side by side; their mean probability is the prediction. Rounded up to what
        a strategy trains together (co-teaching: pairs).
    cross_fit : int or None, default=None
        Number of folds k. The same fit then trains further members, each without one fold, for
        ``oof_proba_`` and ``label_quality_``. It changes the draws of dropout and of ``"ensloss"``,
        what all members tell ``"infobatch"``, ``"group_loss_resample"`` and ``"transition"``, and
        else no prediction, but for ``loss="auto"``, which cross-fits anyway: it leaves out its last
        step, a model that has no such probabilities of its own, so that ``oof_proba_`` are those of
        the mixture that predicts.
    module : str, torch module class or module, default="mlp"
        ``"mlp"``, ``"resnet"``, or ``"nested_mlp"`` and ``"nested_resnet"``, which order their
        last features by importance and keep as many as are best on held-out rows. A class is
        called as ``module(n_inputs, n_classes, **module__params)``; a module maps
        ``(sample, n_inputs)`` to ``(sample, n_classes)`` and is copied.
    hidden : sequence of int, default=(256, 256)
        Widths of the hidden layers.
    activation : str or callable, default="relu"
        ``"relu"``, ``"gelu"``, ``"silu"``, ``"selu"``, ``"elu"``, ``"mish"``, ``"tanh"``,
        ``"leaky_relu"``.
    dropout : float in [0, 1) or "auto", default="auto"
        Probability of setting a hidden unit to zero; ``"auto"`` is 0.3, and 0 for data that fit in
        one batch.
    numeric_embedding : {None, "periodic", "piecewise_linear"}, default=None
        How numbers of more than two values enter the network besides as themselves. In
        ``partial_fit`` the first rows say which are.
    preprocess : {"auto", None} or transformer, default="auto"
        ``"auto"`` is :class:`~robustclf.preprocessing.TabularEncoder`; None takes numbers as they
        are.
    categorical_features : "from_dtype", None or list of str, int or bool, default="from_dtype"
        Columns that are categories; ``"from_dtype"`` finds text and categorical columns.
    optimizer : str or optimizer class, default="adamw"
        ``"adamw"``, ``"adam"``, ``"fadam"``, ``"nadam"``, ``"radam"``, ``"rmsprop"``, ``"sgd"``,
        ``"momo"``, ``"momo_adam"``, and around any of them ``"sam"``, ``"asam"``, ``"awp"``; or a
        class of torch. Parameters as in ``optimizer__rho``.
    lr : float, default=0.003
        Peak learning rate. For ``"momo"`` and ``"momo_adam"``, which choose their steps themselves,
        an upper bound (published: 1 and 0.01).
    weight_decay : float, default=0.01
        Decay of the weights, not of the biases.
    lr_schedule : {"one_cycle", "cosine", "constant"}, callable or None, default="one_cycle"
        A callable maps the time in [0, 1] to a factor of ``lr``; None leaves the rate to a
        callback.
    warm_up : float in [0, 1], default=0.1
        Share of the epochs that minimise the cross entropy before ``loss`` takes over: a bounded
        loss from the start may never learn a rare or hard class. 0 trains with ``loss`` alone.
    max_epochs : int or "auto", default="auto"
        ``"auto"`` sees 60,000 rows, in at least 40 and at most 150 epochs; of data larger than
        memory at most 20 million rows.
    batch_size : int or "auto", default="auto"
        Rows of a step; ``"auto"`` is 128, more from 25,600 rows on, at most 1,024. Data that fit in
        one batch are trained in float64.
    early_stopping : bool, int or skorch callback, default=False
        Restore the weights of the epoch with the best accuracy on held-out rows; an integer also
        stops after so many epochs without a better one. Other rules are in
        :mod:`robustclf.stopping`, one of them without held-out rows.
    validation_fraction : float in (0, 1), default=0.1
        Share of rows held out by ``early_stopping`` or for a nested module, stratified.
    class_weight : dict, "balanced" or None, default=None
        Weight of each class, times ``sample_weight``; ``"balanced"`` gives all classes the same
        sum of weights.
    track_dynamics : bool, default=False
        Whether to look at every row after each epoch, for ``dynamics_``. Costs a forward pass.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU. In a process group of torch, where all
        processes call ``fit``, each takes a device of its own and its share of every batch.
    precision : {"float32", "float64", "bf16"}, default="float32"
        ``"bf16"`` runs the network in bfloat16 where the hardware has it, the rest in float32.
    random_state : int, RandomState or None, default=None
        Governs the whole fit; no global generator of torch is read or changed.
    verbose : int, default=0
        1 shows a progress bar with epoch, loss and accuracy.
    callbacks : list of skorch callbacks or None, default=None
    **params
        Parameters of the parts: ``loss__q``, ``strategy__alpha``, ``optimizer__rho``, ...

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Where X has column names that are all strings.
    net_ : skorch.NeuralNet
        The fitted net; ``net_.module_`` is the stack of networks. With ``loss="auto"`` that of
        greatest weight, which :meth:`embed` and :meth:`member_proba` ask, too.
    history_ : skorch.History
        Per epoch: ``train_loss``, ``lr``, ``dur`` and, with held-out rows, ``valid_acc``.
    encoder_ : transformer or None
    auto_report_ : AutoReport
        With ``loss="auto"``: what was estimated, tried and chosen.
    mixture_ : Mixture
        With ``loss="auto"``: models and weights that predict.
    oof_proba_ : ndarray of shape (n_samples, n_classes)
        With ``cross_fit`` or ``loss="auto"``: probabilities by members that did not train on the
        row. To compare them with ``predict_proba``, as conformal prediction does, set
        ``cross_fit`` for ``loss="auto"``, too.
    label_quality_ : ndarray of shape (n_samples,)
        With ``cross_fit`` or ``loss="auto"``: out-of-fold probability of the given label; low for a
        wrong one.
    dynamics_ : TrainingDynamics
        With ``track_dynamics``: losses and margins of every row at every epoch, for
        :func:`robustclf.noise.find_label_issues`.

    References
    ----------
    Zhang, Sabuncu. Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels. NeurIPS 2018. arXiv:1805.07836.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from robustclf import RobustClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> noisy = y.copy()
    >>> noisy[::5] = 1 - noisy[::5]  # 20 % wrong labels
    >>> clf = RobustClassifier(random_state=0).fit(X, noisy)
    >>> bool(clf.score(X, y) > 0.9)
    True
    >>> worst = clf.label_quality_.argsort()[:50]
    >>> bool((noisy[worst] != y[worst]).mean() > 0.9)
    True
    """

    _parts = ("loss", "strategy", "optimizer", "module")

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "budget": [StrOptions(set(BUDGETS))],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "cross_fit": [None, Interval(Integral, 2, None, closed="left")],
        "module": [str, callable],
        "hidden": ["array-like"],
        "activation": [str, callable],
        "dropout": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "warm_up": [Interval(Real, 0, 1, closed="both")],
        "lr_schedule": [None, callable, StrOptions(set(SCHEDULES))],
        "max_epochs": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "early_stopping": [
            "boolean",
            Interval(Integral, 1, None, closed="left"),
            HasMethods(["on_epoch_end"]),
        ],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "track_dynamics": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [None, list, tuple],
        "preprocess": [None, StrOptions({"auto"}), HasMethods(["fit_transform", "transform"])],
    }

    def __init__(
        self,
        *,
        loss: str | Loss = "auto",
        budget: str = "balanced",
        strategy: str | Strategy | Sequence[str | Strategy] | None = None,
        n_members: int = 1,
        cross_fit: int | None = None,
        module: Any = "mlp",
        hidden: Sequence[int] = (256, 256),
        activation: Any = "relu",
        dropout: float | str = "auto",
        numeric_embedding: str | None = None,
        preprocess: Any = "auto",
        categorical_features: Any = "from_dtype",
        optimizer: Any = "adamw",
        lr: float = 0.003,
        weight_decay: float = 0.01,
        lr_schedule: Any = "one_cycle",
        warm_up: float = 0.1,
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        early_stopping: bool | int | Callback = False,
        validation_fraction: float = 0.1,
        class_weight: Mapping[Any, float] | str | None = None,
        track_dynamics: bool = False,
        device: str = "auto",
        precision: str = "float32",
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Sequence[Any] | None = None,
        **params: Any,
    ) -> None:
        self.loss = loss
        self.budget = budget
        self.strategy = strategy
        self.n_members = n_members
        self.cross_fit = cross_fit
        self.module = module
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.numeric_embedding = numeric_embedding
        self.preprocess = preprocess
        self.categorical_features = categorical_features
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.warm_up = warm_up
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.track_dynamics = track_dynamics
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self._set_part_params(params)

    @classmethod
    def from_recipe(cls, recipe: str, /, **params: Any) -> Self:
        """Build the classifier that a method of the field amounts to, by the paper's name.

        Parameters
        ----------
        recipe : str
            One of :func:`list_recipes`.
        **params
            Parameters of the classifier, instead of or beside those of the recipe.

        Returns
        -------
        RobustClassifier

        Raises
        ------
        ValueError
            For an unknown recipe, with what is allowed and the closest match.

        Examples
        --------
        >>> from robustclf import RobustClassifier
        >>> RobustClassifier.from_recipe("co-teaching", n_members=4)
        RobustClassifier(loss='ce', n_members=4, strategy='co_teaching')
        """
        return cls(**(RECIPES.make(recipe) | params))

    # Training -----------------------------------------------------------------------------------

    def _validate_params(self) -> None:
        super()._validate_params()
        for key in self._part_params("loss") if self._is_auto() else ():
            raise ValueError(
                f"loss='auto' chooses the losses itself and has no parameter {key!r}: leave "
                f"loss__{key} out, or set a loss such as 'gce'."
            )

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        X_val: Any = None,
        y_val: Any = None,
        groups: ArrayLike | None = None,
        trusted: ArrayLike | None = None,
    ) -> Self:
        """Fit the classifier to rows with possibly wrong labels.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)
            Numbers, categories and missing values. Data larger than memory are a
            ``numpy.memmap``, a torch ``Dataset``, or a source such as
            :class:`~robustclf.ParquetSource`, read through a shuffle buffer.
        y : array-like of shape (n_samples,)
            Labels: strings, booleans or integers; None where a source has them. A row whose label
            is missing has none; so has one with the integer -1, where there are at least two other
            values. Strategies such as ``"pseudo_label"`` learn from these rows, without one they
            are left out.
        sample_weight : array-like of shape (n_samples,), optional
            Non-negative; a weight of zero drops the row. In data that fit in one batch an integer
            weight is exactly a repetition of the row, but for the bins of ``"piecewise_linear"``,
            which heed no weights.
        X_val, y_val : optional
            Rows and labels to watch, and with ``early_stopping`` to stop on or for a nested module
            to choose on, in place of a part held out of ``X``. A source is loaded.
        groups : array-like of shape (n_samples,), optional
            Group of each row, for strategies such as ``"group_dro"``.
        trusted : array-like, optional
            Mask of, or numbers of, the rows whose labels are known to be right, for
            ``"transition"``.

        Returns
        -------
        self : RobustClassifier

        Raises
        ------
        ValueError
            For input or parameters that cannot work; the message says which and what is allowed.
        DivergenceError
            If the training loss becomes infinite or not a number.
        """
        if self._is_auto() and in_memory(X):
            self._validate_params()
            given = {"X": X, "y": y, "sample_weight": sample_weight, "groups": groups}
            given |= {"X_val": X_val, "y_val": y_val, "trusted": trusted}
            self._keep(Auto(self, given).run())
            return self
        prepared = self._prepare(X, y, sample_weight, X_val, y_val, groups, trusted)
        prepared.train()
        self._keep(prepared.fitted())
        if self.net_.interrupted_:
            warnings.warn(
                f"The fit was interrupted in epoch {len(self.history_)} of "
                f"{self.net_.max_epochs}; the model keeps the weights it had then.",
                UserWarning,
                stacklevel=2,
            )
        return self

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        X_val: Any = None,
        y_val: Any = None,
        groups: ArrayLike | None = None,
        trusted: ArrayLike | None = None,
        *,
        encoded: Callable[..., tuple[Any, Any]] | None = None,
    ) -> Prepared:
        """Do all of a fit but the training; ``encoded`` may know the encoder and the rows."""
        self._validate_params()
        X, y = open_rows(self, X, y)
        X_val, y_val = load_rows(X_val, y_val)
        labels, missing = split_labels(y)
        check_consistent_length(X, missing)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together: give both or neither.")
        if X_val is not None:
            check_consistent_length(X_val, y_val)
        method = Method.of(self, np.unique(labels))
        y_val = y_val if y_val is None else as_labels(y_val, method.classes, "y_val")
        groups = group_codes(groups, len(missing))
        trusted = row_mask(trusted, len(missing), "trusted")
        method.check_told(missing, stacklevel=5, groups=groups, trusted=trusted)
        rng = common_random_state(self.random_state, method.device)
        rows = plan_rows(
            self,
            method,
            labels,
            missing,
            sample_weight,
            rng,
            hold_out=held_share(self, method, X) if X_val is None else 0.0,
            cross_fit=method.cross_fit,
            groups=groups,
            trusted=trusted,
        )
        check_classes(method.classes[np.unique(rows.codes[rows.trained[~missing[rows.trained]]])])
        method.check_trusted(rows)
        with seeded(rng.randint(2**31 - 1), method.device):
            encoder, x = (encoded or fit_encoder)(make_encoder(self), X, rows.weight)
            net = make_net(self, encoder, x, rows, method, rng)
            data = training_set(x, rows, net, method)
            if X_val is not None:
                data.x_valid = encode(encoder, X_val)
                data.y_valid = torch.from_numpy(encode_labels(y_val, method.classes))
            states = random_states(method.device)
        return Prepared(method.classes, encoder, net, data.to(net), missing, rows.folds, states)

    @available_if(_takes_chunks)
    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on these rows, at a constant learning rate and without warm-up.

        The first call, on a classifier that is not fitted, learns the encoding from its rows and
        takes the parameters as they are; later calls go on with what was fitted.
        Strategies that remember rows (ELR) start anew with each call. ``loss="auto"`` is ``"gce"``
        here; the mixture that ``fit`` makes of it cannot go on, and has no ``partial_fit``.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`; a source, such as one Parquet file of many, is loaded.
        classes : array-like of shape (n_classes,), optional
            All labels that can come; those of the first ``y`` if None. Missing ones are no class.

        Returns
        -------
        self : RobustClassifier
        """
        self._validate_params()
        if self.cross_fit is not None or self.early_stopping or self.track_dynamics:
            raise ValueError(
                "cross_fit, early_stopping and track_dynamics need all rows at once: call fit."
            )
        X, y = load_rows(X, y)
        first = not hasattr(self, "net_")
        given = None if classes is None else known_classes(classes)
        labels, missing = split_labels(y, given if first else self.classes_)
        check_consistent_length(X, missing)
        known = (np.unique(labels) if given is None else given) if first else self.classes_
        method = Method.of(self, known)
        method.check_told(missing, groups=None, trusted=None)
        rng = common_random_state(self.random_state, method.device)
        rows = plan_rows(self, method, labels, missing, sample_weight, rng)
        encoder = make_encoder(self) if first else self.encoder_
        with seeded(rng.randint(2**31 - 1), method.device):
            x = fit_encoder(encoder, X, rows.weight)[1] if first else encode(encoder, X)
            if first:
                net = make_net(self, encoder, x, rows, method, rng).initialize()
                self._keep({"classes_": known, "encoder_": encoder, "net_": net})
            data = training_set(x, rows, self.net_, method)
            self.net_.schedule, self.net_.warm_up = None, 0.0
            whole = (Stopping, DynamicsRecorder)  # of a former fit, which had all rows
            kept = [(name, c) for name, c in self.net_.callbacks_ if not isinstance(c, whole)]
            self.net_.callbacks_ = kept
            self.net_.partial_fit(data.to(self.net_), None, epochs=1)
        if self.net_.interrupted_:
            warnings.warn(
                "partial_fit was interrupted; the model keeps the weights it had then.",
                UserWarning,
                stacklevel=2,
            )
        return self

    def _keep(self, fitted: dict[str, Any]) -> None:
        """Replace what a former fit learned, once all is there."""
        former = ("feature_names_in_", "oof_proba_", "label_quality_", "dynamics_")
        for name in (*former, "mixture_", "auto_report_"):
            self.__dict__.pop(name, None)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted["encoder_"], name):
                fitted[name] = getattr(fitted["encoder_"], name)
        self.__dict__.update(fitted)

    def _is_auto(self) -> bool:
        return isinstance(self.loss, str) and self.loss == "auto"

    def _at_default(self, name: str) -> bool:
        """Tell whether a parameter has the value of a classifier that is told nothing."""
        value, default = getattr(self, name), signature(RobustClassifier).parameters[name].default
        return value is default or (type(value) is type(default) and value == default)

    def _copy(self) -> RobustClassifier:
        """Return an unfitted classifier with these parameters, not of a subclass."""
        names = [*signature(RobustClassifier).parameters]
        names += [name for name in vars(self) if name.partition("__")[0] in self._parts]
        given = {name: clone(getattr(self, name), safe=False) for name in dict.fromkeys(names)}
        return RobustClassifier(**given)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.preprocess == "auto"
        tags.input_tags.categorical = self.preprocess == "auto"
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_") and hasattr(self, "classes_")
