"""Every setting of the service: read from the environment and `.env` once, in cli.py, checked, frozen and passed on.

The environment variable of a field is its name in capitals. `python run.py settings` prints all settings with the
values in force. A plugin's own settings are a PluginSettings; their variables are PLUGIN_<NAME>_<FIELD>.
fields.py has the settings, settings.py what follows from them, checks.py what must hold, loading.py reads them.
"""

from pipeline.settings.hosts import is_loopback, is_safe_url
from pipeline.settings.kinds import CATEGORY, CLOUDINARY, DEFAULT_CATEGORIES, Fairness, LogFormat, MongoDriver, Role
from pipeline.settings.loading import FROM_FILES, load
from pipeline.settings.plugin_settings import FILE_SUFFIX, PLUGIN_PREFIX, PluginSettings, plugin_variable
from pipeline.settings.removed import REMOVED, REMOVED_IN, Removed
from pipeline.settings.settings import Settings

__all__ = [
    "CATEGORY",
    "CLOUDINARY",
    "DEFAULT_CATEGORIES",
    "FILE_SUFFIX",
    "FROM_FILES",
    "PLUGIN_PREFIX",
    "REMOVED",
    "REMOVED_IN",
    "Fairness",
    "LogFormat",
    "MongoDriver",
    "PluginSettings",
    "Removed",
    "Role",
    "Settings",
    "is_loopback",
    "is_safe_url",
    "load",
    "plugin_variable",
]
