// The page of `ktllama plan`: one plan at the context that it is for. Bars and charts are there without a script.

const state = { plan: 0, tokens: data.context.shown, pinned: undefined };

drawRules();
drawTable();
drawOnResize();
draw();
