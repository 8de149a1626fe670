__version__ = "0.1.0"
from .statistics import *
from .dual_batchnorm import *
from .layer import *
from .splitting import *
from .network import *
