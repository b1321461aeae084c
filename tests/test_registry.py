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

    @registry.register("swan")
    def swan(legs=2):
        return Animal(legs, mate=Animal(legs))

    return registry


def test_makes_classes_and_recipes_by_alias(animals):
    assert animals.names() == ["bird", "cat", "swan"]
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
    message = "^unknown animal 'brid', allowed are 'bird', 'cat', 'swan'; did you mean 'bird'\\?$"
    with pytest.raises(ValueError, match=message):
        getattr(animals, method)("brid")


@pytest.mark.parametrize("what", ["cat", Animal()])
def test_unknown_parameter(animals, what):
    with pytest.raises(ValueError, match=r"'leg', allowed are 'legs', .* mean 'legs'\?$"):
        animals.make(what, leg=3)


def test_recipe_refuses_parameters_it_does_not_take(animals):
    with pytest.raises(ValueError, match=r"of animal 'bird' 'mate', allowed are 'legs'$"):
        animals.make("bird", mate=None)


def test_reaches_what_a_recipe_composed(animals):
    swan = animals.make("swan", legs=3, mate__legs=1)
    assert (swan.legs, swan.mate.legs) == (3, 1)
    for alias, allowed in (("swan", "'legs', 'mate'"), ("bird", "'legs'")):
        with pytest.raises(ValueError, match=rf"'{alias}' 'nest', allowed are {allowed}$"):
            animals.make(alias, nest__size=1)
    with pytest.raises(ValueError, match=r"'bird' 'mate', allowed are 'legs'$"):
        animals.make("bird", mate__legs=1)


@pytest.mark.parametrize("what", [None, 3, Animal])
def test_neither_alias_nor_instance(animals, what):
    with pytest.raises(TypeError, match="animal must be an alias or an instance of Animal, got"):
        animals.make(what)


def test_an_alias_is_given_once(animals):
    with pytest.raises(ValueError, match="animal alias 'cat' is taken"):
        animals.register("cat")


def test_closest_ignores_case():
    assert closest("GCE", ["gce", "ce"]) == "; did you mean 'gce'?"
