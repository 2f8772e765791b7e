// What the page says, in English and Chinese, and which of them it says now.
const WORDS = {
  en: {
    welcome: "Ask about a picture",
    pickLarge: "Choose a picture",
    pickHint: "or drop it here, or paste it. It goes to this server only.",
    orSample: "Or try one of these",
    newChat: "New chat",
    otherLanguage: "切换到中文",
    otherLanguageShort: "中文",
    settings: "Settings",
    themeAuto: "Theme: as the system",
    themeLight: "Theme: light",
    themeDark: "Theme: dark",
    conversation: "Conversation",
    question: "Ask something",
    questionAbout: "Ask about the picture",
    addPicture: "Add a picture",
    find: "Find",
    findHelp: "Find: ask where something is, and see it framed",
    findPrompt: ["Please provide the bounding box coordinate of the region this sentence describes: ", "", "."],
    send: "Send",
    stop: "Stop",
    smallPrint: "Answers can be wrong.",
    dropHere: "Drop to ask about it",
    removePicture: "Remove this picture",
    largePicture: "Picture",
    close: "Close",
    toEnd: "To the newest message",
    copy: "Copy",
    copied: "Copied",
    retry: "Try again",
    edit: "Edit",
    cancel: "Cancel",
    done: "Done",
    you: "You",
    model: "Model",
    temperature: "Temperature",
    temperatureHelp: "0 always says the likeliest; higher varies more.",
    maxTokens: "Longest answer, in tokens",
    systemText: "System text",
    systemHelp: "The model's own",
    apiKey: "API key",
    apiKeyHelp: "Only where the server asks for one. Kept until this tab closes.",
    answering: "The model answers …",
    stopped: "Stopped.",
    cut: "Cut at the longest answer; the settings allow longer ones.",
    emptyAnswer: "The model said nothing.",
    boxAlt: "The picture with what the answer names framed",
    pictureAlt: "Picture",
    boxes: (count) => (count === 1 ? "1 box drawn on the picture" : `${count} boxes drawn on the picture`),
    figures: (tokens, first, rate) => `${tokens} tokens · first after ${first} s · ${rate} tokens/s`,
    notPicture: (name) => `${name || "This"} is not a picture that this browser can read.`,
    tooMany: (most) => `At most ${most} pictures go with a question.`,
    unreachable: "The server cannot be reached.",
    needsKey: "This server wants an API key: set it in the settings.",
    busy: (seconds) => `The server is busy. Try again in ${seconds} s.`,
    broken: "The answer broke off: the connection was lost.",
    failed: (status) => `The server answered with an error (${status}).`,
    ask: ["Describe this picture.", "What is unusual about this picture?", "Where might this be?"],
  },
  zh: {
    welcome: "问一问图片",
    pickLarge: "选择图片",
    pickHint: "也可以拖到这里，或直接粘贴。图片只会发送到本服务器。",
    orSample: "或者试试这些图片",
    newChat: "新对话",
    otherLanguage: "Switch to English",
    otherLanguageShort: "EN",
    settings: "设置",
    themeAuto: "主题：跟随系统",
    themeLight: "主题：浅色",
    themeDark: "主题：深色",
    conversation: "对话",
    question: "输入问题",
    questionAbout: "就图片提问",
    addPicture: "添加图片",
    find: "定位",
    findHelp: "定位：询问某物在哪里，并在图中框出",
    findPrompt: ["给出", "", "位置的坐标"],
    send: "发送",
    stop: "停止",
    smallPrint: "回答可能有误。",
    dropHere: "松开即可提问",
    removePicture: "移除这张图片",
    largePicture: "图片",
    close: "关闭",
    toEnd: "回到最新消息",
    copy: "复制",
    copied: "已复制",
    retry: "重试",
    edit: "编辑",
    cancel: "取消",
    done: "完成",
    you: "你",
    model: "模型",
    temperature: "温度",
    temperatureHelp: "0 总是给出最可能的回答；越高变化越多。",
    maxTokens: "回答的最大长度（token）",
    systemText: "系统提示",
    systemHelp: "使用模型自带的",
    apiKey: "API 密钥",
    apiKeyHelp: "仅当服务器要求时填写，关闭标签页后即清除。",
    answering: "模型正在回答……",
    stopped: "已停止。",
    cut: "回答达到最大长度而被截断；可在设置中调大。",
    emptyAnswer: "模型没有说话。",
    boxAlt: "已框出回答所指内容的图片",
    pictureAlt: "图片",
    boxes: (count) => `图中画出了 ${count} 个框`,
    figures: (tokens, first, rate) => `${tokens} 个 token · 首个 ${first} 秒 · 每秒 ${rate} 个`,
    notPicture: (name) => `${name || "这个文件"} 不是浏览器能读取的图片。`,
    tooMany: (most) => `一个问题最多附带 ${most} 张图片。`,
    unreachable: "无法连接服务器。",
    needsKey: "服务器需要 API 密钥：请在设置中填写。",
    busy: (seconds) => `服务器繁忙，请在 ${seconds} 秒后重试。`,
    broken: "连接中断，回答不完整。",
    failed: (status) => `服务器返回错误（${status}）。`,
    ask: ["描述这张照片", "这张图片有什么特别之处？", "这可能是在哪里？"],
  },
};

export let language = "en";

/** The text of `key` in the present language; texts with numbers in them are functions of these. */
export function word(key, ...values) {
  const text = WORDS[language][key];
  return typeof text === "function" ? text(...values) : text;
}

/** Say everything in `wanted`, "en" or "zh". */
export function speak(wanted) {
  language = wanted in WORDS ? wanted : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-label]")) label(node, word(node.dataset.label));
}

/** The name of a control for those who do not see its icon, and as a tip for those who do. */
export function label(node, text) {
  node.setAttribute("aria-label", text);
  if (node.tagName === "BUTTON") node.title = text;
}
