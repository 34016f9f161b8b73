"""The study service: specs over REST, trials on Ray Tune, results in a store, MLflow as its projection."""
