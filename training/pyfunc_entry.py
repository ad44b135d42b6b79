"""The script that MLflow stores with each version and runs to load it (models-from-code). Nothing else imports it.

It names the class and no more, so what runs is the installed package's code.
"""

from mlflow.models import set_model

from training.pyfunc import ShortlistModel

set_model(ShortlistModel())
