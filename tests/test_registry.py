import pytest
from sklearn.base import BaseEstimator

from robustclf._registry import Registry, closest


class Animal(BaseEstimator):
    def __init__(self, legs=4, mate=None):
        self.legs = legs
        self.mate = mate


@pytest.fixture
def animals():
    registry = Registry("animal", Animal)
    registry.register("cat")(Animal)

    @registry.register("bird")
    def bird(legs=2):
        return Animal(legs)

    return registry


def test_makes_classes_and_recipes_by_alias(animals):
    assert animals.names() == ["bird", "cat"]
    assert animals.get("cat") is Animal
    assert animals.make("cat").legs == 4
    assert animals.make("bird").legs == 2
    assert animals.make("bird", legs=1).legs == 1


def test_copies_an_instance(animals):
    cat = Animal(mate=Animal(3))
    copy = animals.make(cat, legs=5, mate__legs=6)
    assert (copy.legs, copy.mate.legs) == (5, 6)
    assert (cat.legs, cat.mate.legs) == (4, 3)


@pytest.mark.parametrize("method", ["get", "make"])
def test_unknown_alias(animals, method):
    message = "^unknown animal 'brid', allowed are 'bird', 'cat'; did you mean 'bird'\\?$"
    with pytest.raises(ValueError, match=message):
        getattr(animals, method)("brid")


@pytest.mark.parametrize("what", ["cat", Animal()])
def test_unknown_parameter(animals, what):
    with pytest.raises(ValueError, match=r"'leg', allowed are 'legs', .* mean 'legs'\?$"):
        animals.make(what, leg=3)


def test_recipe_refuses_parameters_it_does_not_take(animals):
    with pytest.raises(ValueError, match=r"of animal 'bird' 'mate', allowed are 'legs'$"):
        animals.make("bird", mate=None)


@pytest.mark.parametrize("what", [None, 3, Animal])
def test_neither_alias_nor_instance(animals, what):
    with pytest.raises(TypeError, match="animal must be an alias or an instance of Animal, got"):
        animals.make(what)


def test_an_alias_is_given_once(animals):
    with pytest.raises(ValueError, match="animal alias 'cat' is taken"):
        animals.register("cat")


def test_closest_ignores_case():
    assert closest("GCE", ["gce", "ce"]) == "; did you mean 'gce'?"
