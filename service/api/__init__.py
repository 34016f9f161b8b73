"""The REST API: thin routes over the store and the analysis. It imports neither Ray nor torch nor MLflow."""
