"""What samstudy may be asked for. The API reads this too, so nothing here imports torch: `code` says where that is."""

from trainers.facts import DatasetFacts, ModelFacts

TWO_LAYERS = ModelFacts(
    "two_layers",
    "two hidden layers with batch normalisation",
    ("classification",),
    needs_images=False,
    needs_two_examples=True,
    code="my_lab.networks:two_layers",
)

STRIPES = DatasetFacts(
    "stripes",
    "8 × 8 noisy stripes, horizontal, vertical and diagonal",
    "classification",
    shape=(1, 8, 8),
    classes=3,
    train_size=600,
    validation_size=150,
    code="my_lab.data:stripes",
)
