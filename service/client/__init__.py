"""The Python client: the REST surface as methods that answer with the service's own models.

Keys are left out, which are an admin's (`samstudy keys`), one search space by its name, and what machines ask.

with Client() as client:
    study = client.submit("study.yaml").wait()
    print(study.best)
"""

from service.client.client import Client, Spec
from service.client.connection import DEFAULT_URL
from service.client.handle import StudyHandle

__all__ = ["DEFAULT_URL", "Client", "Spec", "StudyHandle"]
