"""Events, catalogue, activity store, event bus and features: everything that is known before a model is trained."""

from feature_repo.feast_import import QuickFeast

QuickFeast.install()
