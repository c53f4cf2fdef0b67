"""Conversations rendered as prompts, and what a model writes parsed."""

from gptoss.chat.conversation import Message as Message
from gptoss.chat.formats import ChatOptions as ChatOptions
from gptoss.chat.formats import HarmonyChat as HarmonyChat
from gptoss.chat.formats import PlainChat as PlainChat
from gptoss.chat.formats import load_chat as load_chat
from gptoss.chat.harmony import ANALYSIS as ANALYSIS
from gptoss.chat.harmony import CALL as CALL
from gptoss.chat.harmony import CHANNEL as CHANNEL
from gptoss.chat.harmony import CHANNELS as CHANNELS
from gptoss.chat.harmony import CONSTRAIN as CONSTRAIN
from gptoss.chat.harmony import END as END
from gptoss.chat.harmony import MESSAGE as MESSAGE
from gptoss.chat.harmony import REQUIRED as REQUIRED
from gptoss.chat.harmony import RETURN as RETURN
from gptoss.chat.harmony import ROLES as ROLES
from gptoss.chat.harmony import START as START
from gptoss.chat.harmony import HarmonyParser as HarmonyParser
from gptoss.chat.harmony import Piece as Piece
from gptoss.chat.messages import ChatMessage as ChatMessage
from gptoss.chat.messages import Tool as Tool
from gptoss.chat.messages import parse_messages as parse_messages
from gptoss.chat.messages import parse_tools as parse_tools
from gptoss.chat.parse import parse as parse
from gptoss.chat.conversation import Conversation as Conversation
