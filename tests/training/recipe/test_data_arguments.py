"""What a recipe says about its data, checked before anything is read."""

import pytest
import yaml

from training.recipe.arguments import RecipeError, parse_recipe


@pytest.fixture
def recipe(tmp_path):
    def make(**values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"small_base": {"hidden_size": 32}, "max_steps": 1, **values}))
        return str(path)

    return make


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positives_per_query": 0}, "positives_per_query: found 0; expected a number of at least 1"),
        ({"action_weights": {"click": 2}}, "action_weights: 'click': found 2; expected above 0 and at most 1"),
        ({"action_weights": {}}, "action_weights: found none"),
        ({"interaction_half_life_days": -1}, "interaction_half_life_days: found -1; expected a number above 0"),
        ({"data": [{"products": "/no/such", "interactions": "/no"}]}, "data.products: found nothing"),
    ],
)
def test_what_cannot_work_is_refused_by_key(recipe, values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(**values)])
