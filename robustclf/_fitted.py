"""What a fitted classifier does: predict, embed rows, leave for other programs."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from skorch.history import History
from torch import Tensor, nn

from robustclf._build import encoded_chunks
from robustclf._export import export_onnx, export_torch


def _reads_vacuity(clf: Any) -> bool:
    net = getattr(clf, "net_", None)
    loss = net.criterion_.loss if net else clf.loss
    if not (loss == "evidential" or hasattr(loss, "vacuity")):
        raise AttributeError(f"vacuity needs loss='evidential', got loss={clf.loss!r}")
    return True


class Fitted:
    """What needs ``classes_``, ``encoder_``, ``net_`` and, with ``loss="auto"``, ``mixture_``."""

    classes_: NDArray[Any]
    encoder_: Any
    net_: Any
    mixture_: Any
    module: Any
    activation: Any
    precision: str

    @property
    def history_(self) -> History:
        """What was recorded of each epoch."""
        return self.net_.history

    def _encoded(self, X: Any) -> Iterator[Any]:
        if not hasattr(self, "net_"):
            check_is_fitted(self)
        return encoded_chunks(self.encoder_, X)

    def _logits(self, X: Any) -> Iterator[Tensor]:
        """Yield logits ``(member, sample, class)`` of chunks of rows."""
        for x in self._encoded(X):
            yield from self.net_.logits(x)

    def _probabilities(self, X: Any) -> Iterator[NDArray[Any]]:
        """Yield probabilities ``(sample, class)`` of chunks of rows."""
        for x in self._encoded(X):
            if hasattr(self, "mixture_"):
                yield self.mixture_.proba(x).astype(self._dtype, copy=False)
            else:
                yield from (self._array(self.net_.mean_proba(z)) for z in self.net_.logits(x))

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class, the mean over the members.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            In the order of ``classes_``.
        """
        return _joined(self._probabilities(X))

    def member_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probabilities of each member, whose mean :meth:`predict_proba` is.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        proba : ndarray of shape (n_members, n_samples, n_classes)
        """
        by_row = self._gather(self.net_.proba(z).movedim(0, 1) for z in self._logits(X))
        return np.moveaxis(by_row, 1, 0)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        best = np.concatenate([proba.argmax(axis=1) for proba in self._probabilities(X)])
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return logits averaged over the members.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            With two classes, the difference of their logits, of shape (n_samples,). With
            ``loss="auto"`` log probabilities take the place of logits.
        """
        if hasattr(self, "mixture_"):
            proba = self.predict_proba(X)
            scores = np.log(np.maximum(proba, np.finfo(proba.dtype).tiny))
        else:
            scores = self._gather(logits.mean(0) for logits in self._logits(X))
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    @available_if(_reads_vacuity)
    def vacuity(self, X: Any) -> NDArray[np.float32]:
        """Return the uncertainty for want of evidence; of a classifier with an evidential loss.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        vacuity : ndarray of shape (n_samples,)
            Between 0 and 1 (no evidence at all), the mean over the members.
        """
        check_is_fitted(self)
        loss = self.net_.criterion_.loss
        return self._gather(loss.vacuity(logits).mean(0) for logits in self._logits(X))

    def embed(self, X: Any) -> NDArray[np.float32]:
        """Return what the last hidden layer says, the members side by side.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)

        Returns
        -------
        features : ndarray of shape (n_samples, n_members * width)
        """
        features = (f for x in self._encoded(X) for f in self.net_.embed(x))
        return self._gather(f.movedim(0, 1).flatten(1) for f in features)

    @property
    def _dtype(self) -> type:
        return np.float64 if self.precision == "float64" else np.float32

    def _array(self, chunk: Tensor) -> NDArray[Any]:
        return chunk.cpu().numpy().astype(self._dtype, copy=False)

    def _gather(self, chunks: Iterable[Tensor]) -> NDArray[Any]:
        return _joined(self._array(chunk) for chunk in chunks)

    def _check_one_stack(self) -> None:
        if hasattr(self, "mixture_"):
            raise ValueError(
                "a mixture of models, as loss='auto' fits it, cannot be exported: "
                "keep it with pickle or joblib, or set a loss such as 'gce'."
            )

    def export_onnx(self, path: str | Path, *, missing: str = "") -> None:
        """Write the fitted classifier as an ONNX model that takes rows as they are.

        Scaling, missing values, categories, all members and the labels are in the graph. A table
        without column names and categories enters as ``X``, float64 of shape (n_samples,
        n_features). Any other has an input of shape (n_samples, 1) for each column, by its name:
        float64 for numbers, with NaN where they are missing, and strings for categories. Without
        names they are ``x0``, ``x1``, and so on. The outputs are ``label``, of shape (n_samples,),
        and ``probabilities``, of shape (n_samples, n_classes).

        Parameters
        ----------
        path : str or Path
            File to write, whole or not at all.
        missing : str, default=""
            What stands for a missing string, which ONNX does not have.

        Raises
        ------
        ImportError
            Without ``onnx`` and ``onnxscript``: ``pip install robustclf[onnx]``.
        ValueError
            For a transformer as ``preprocess``, or columns or labels that ONNX cannot take.
        RuntimeError
            If torch cannot export a module or loss that is not of this package; it says which.

        Notes
        -----
        Where :meth:`predict` refuses rows the model does not: infinite numbers are the largest or
        the smallest, and columns are not checked beyond their type. Labels are int64, strings,
        booleans or float64. A model fitted with ``precision="bf16"`` computes in float32.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from sklearn.datasets import load_iris
        >>> from robustclf import RobustClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = RobustClassifier(loss="gce", max_epochs=5, random_state=0).fit(X, y)
        >>> path = Path(tempfile.mkdtemp()) / "iris.onnx"
        >>> clf.export_onnx(path)
        >>> import onnxruntime
        >>> session = onnxruntime.InferenceSession(path)
        >>> label, probabilities = session.run(None, {"X": X})
        >>> np.allclose(probabilities, clf.predict_proba(X), atol=1e-5)
        True
        """
        self._check_one_stack()
        export_onnx(self, path, missing=missing)

    def export_torch(self, path: str | Path | None = None) -> torch.export.ExportedProgram:
        """Return the network as a program that runs without robustclf.

        Parameters
        ----------
        path : str or Path, optional
            File to write it to as well, for :func:`torch.export.load`.

        Returns
        -------
        program : torch.export.ExportedProgram
            Maps any number of encoded rows, ``encoder_.transform(X)``, to their probabilities. The
            rows are float32 of the encoder of this package, float64 of others and with
            ``precision="float64"``.

        Raises
        ------
        RuntimeError
            If torch cannot export a module or loss that is not of this package; it says which.

        Examples
        --------
        >>> import numpy as np
        >>> import torch
        >>> from sklearn.datasets import load_iris
        >>> from robustclf import RobustClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = RobustClassifier(loss="gce", max_epochs=5, random_state=0).fit(X, y)
        >>> network = clf.export_torch().module()
        >>> rows = torch.from_numpy(clf.encoder_.transform(X))
        >>> np.allclose(network(rows).numpy(force=True), clf.predict_proba(X), atol=1e-5)
        True
        """
        self._check_one_stack()
        return export_torch(self, path)

    def __reduce__(self) -> Any:
        """Say what skops, which alone calls this, cannot store; pickle and copy can."""
        fitted = hasattr(self, "net_") and self.net_.module_.arguments is None
        if fitted or any(isinstance(part, nn.Module) for part in (self.module, self.activation)):
            raise TypeError(
                f"skops cannot store module={self.module!r} with activation={self.activation!r}: "
                "the code of a module of torch is not in robustclf. Use pickle or joblib, or "
                "export_onnx or export_torch for prediction."
            )
        return self.__reduce_ex__(2)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]


def _joined(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    parts = list(arrays)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
