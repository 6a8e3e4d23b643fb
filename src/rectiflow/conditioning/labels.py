"""Class labels as conditions."""

from collections.abc import Sequence
from typing import final

import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import unknown


@final
class Labels:
    """Turns names of classes into conditions.

    Args:
        class_names: name of each label, in the order of the labels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    def __call__(self, classes: Sequence[str | int]) -> Condition:
        """Conditions for B names of classes.

        Raises:
            InputError: a class that the model was not trained on, with the near miss.
        """
        index = {name: label for label, name in enumerate(self.class_names)}
        for name in classes:
            if str(name) not in index:
                raise unknown("class", str(name), self.class_names)
        return Condition(torch.tensor([index[str(name)] for name in classes], dtype=torch.int64))
