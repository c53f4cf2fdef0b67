"""The hyper-parameters of a model, config.json in both forms, and its number formats."""

from gptoss.model.bf16 import bf16_to_f32 as bf16_to_f32
from gptoss.model.bf16 import f32_to_bf16 as f32_to_bf16
from gptoss.model.config import ModelConfig as ModelConfig
from gptoss.model.config import check_values as check_values
from gptoss.model.config_file import REQUIRED as REQUIRED
from gptoss.model.config_file import parse_config as parse_config
from gptoss.model.config_file import read_config as read_config
from gptoss.model.config_file import to_original as to_original
from gptoss.model.huggingface import to_huggingface as to_huggingface
