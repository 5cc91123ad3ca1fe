//! Whether a template wants a message's content as text or as a list of parts.
//!
//! vLLM looks at the template: one that loops over the content of a message gets the list. This is
//! its algorithm (`_detect_content_format` in vllm/renderers/hf.py) over minijinja's syntax tree;
//! it follows names, not scopes, as there.

use minijinja::machinery::ast::{CallArg, Expr, Macro, Stmt};

/// How content is handed to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentFormat {
    /// One text, parts joined by line ends.
    Text,
    /// A list of `{"type": "text", "text": ..}`.
    Parts,
}

/// The format the template at `root` wants.
pub(super) fn detect(root: &Stmt<'_>) -> ContentFormat {
    let mut seen = Seen::default();
    seen.statement(root, None);
    if seen.loops_over_content() { ContentFormat::Parts } else { ContentFormat::Text }
}

/// What of the tree the rule looks at.
#[derive(Default)]
struct Seen<'t, 's> {
    /// `{% set name = value %}`.
    sets: Vec<(&'s str, &'t Expr<'s>)>,
    /// `{% for name in list %}`, and the macro it stands in.
    loops: Vec<(&'s str, &'t Expr<'s>, Option<usize>)>,
    macros: Vec<&'t Macro<'s>>,
    /// Calls of a plain name.
    calls: Vec<(&'s str, &'t [CallArg<'s>])>,
}

impl<'t, 's> Seen<'t, 's> {
    fn loops_over_content(&self) -> bool {
        let mut lists = vec!["messages"];
        let mut at = 0;
        while let Some(list) = lists.get(at).copied() {
            for (name, value) in &self.sets {
                if reaches(value, list, None) && !lists.contains(name) {
                    lists.push(name);
                }
            }
            at += 1;
        }
        let messages: Vec<&str> = self
            .loops
            .iter()
            .filter(|(_, over, _)| lists.iter().any(|list| reaches(over, list, None)))
            .map(|(name, ..)| *name)
            .collect();
        let is_content = |expr: &Expr<'_>| {
            messages.iter().any(|message| reaches(expr, message, Some("content")))
        };
        self.loops.iter().any(|(_, over, inside)| {
            if is_content(over) {
                return true;
            }
            let Expr::Var(over) = over else { return false };
            match inside {
                None => over.id == "content",
                Some(index) => self.takes_content(self.macros[*index], over.id, &is_content),
            }
        })
    }

    /// Whether some call hands content to the parameter.
    fn takes_content(
        &self,
        macro_: &Macro<'_>,
        parameter: &str,
        is_content: &impl Fn(&Expr<'_>) -> bool,
    ) -> bool {
        let position = macro_.args.iter().position(|arg| is_var(arg, parameter));
        let Some(position) = position else { return false };
        self.calls.iter().filter(|(name, _)| *name == macro_.name).any(|(_, args)| {
            args.iter().enumerate().any(|(at, arg)| match arg {
                CallArg::Pos(value) => at == position && is_content(value),
                CallArg::Kwarg(name, value) => *name == parameter && is_content(value),
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => false,
            })
        })
    }

    fn all(&mut self, statements: &'t [Stmt<'s>], inside: Option<usize>) {
        for statement in statements {
            self.statement(statement, inside);
        }
    }

    fn statement(&mut self, statement: &'t Stmt<'s>, inside: Option<usize>) {
        match statement {
            Stmt::Template(node) => self.all(&node.children, inside),
            Stmt::EmitExpr(node) => self.expression(&node.expr),
            Stmt::ForLoop(node) => {
                if let Expr::Var(target) = &node.target {
                    self.loops.push((target.id, &node.iter, inside));
                }
                self.expression(&node.iter);
                self.optional(node.filter_expr.as_ref());
                self.all(&node.body, inside);
                self.all(&node.else_body, inside);
            }
            Stmt::IfCond(node) => {
                self.expression(&node.expr);
                self.all(&node.true_body, inside);
                self.all(&node.false_body, inside);
            }
            Stmt::WithBlock(node) => {
                for (_, value) in &node.assignments {
                    self.expression(value);
                }
                self.all(&node.body, inside);
            }
            Stmt::Set(node) => {
                if let Expr::Var(target) = &node.target {
                    self.sets.push((target.id, &node.expr));
                }
                self.expression(&node.expr);
            }
            Stmt::SetBlock(node) => {
                self.optional(node.filter.as_ref());
                self.all(&node.body, inside);
            }
            Stmt::AutoEscape(node) => self.all(&node.body, inside),
            Stmt::FilterBlock(node) => {
                self.expression(&node.filter);
                self.all(&node.body, inside);
            }
            Stmt::Macro(node) => {
                self.macros.push(node);
                let index = self.macros.len() - 1;
                self.all(&node.body, Some(index));
            }
            Stmt::CallBlock(node) => {
                self.call(&node.call.expr, &node.call.args);
                self.all(&node.macro_decl.body, inside);
            }
            Stmt::Do(node) => self.call(&node.call.expr, &node.call.args),
            // Text, and statements of features we leave out.
            _ => {}
        }
    }

    fn optional(&mut self, expr: Option<&'t Expr<'s>>) {
        if let Some(expr) = expr {
            self.expression(expr);
        }
    }

    fn call(&mut self, callee: &'t Expr<'s>, args: &'t [CallArg<'s>]) {
        if let Expr::Var(name) = callee {
            self.calls.push((name.id, args));
        }
        self.expression(callee);
        self.arguments(args);
    }

    fn arguments(&mut self, args: &'t [CallArg<'s>]) {
        for arg in args {
            match arg {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }

    fn expression(&mut self, expr: &'t Expr<'s>) {
        match expr {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(node) => self.expression(&node.expr),
            Expr::UnaryOp(node) => self.expression(&node.expr),
            Expr::BinOp(node) => {
                self.expression(&node.left);
                self.expression(&node.right);
            }
            Expr::Compare(node) => {
                self.expression(&node.expr);
                for op in &node.ops {
                    self.expression(&op.expr);
                }
            }
            Expr::IfExpr(node) => {
                self.expression(&node.test_expr);
                self.expression(&node.true_expr);
                self.optional(node.false_expr.as_ref());
            }
            Expr::Filter(node) => {
                self.optional(node.expr.as_ref());
                self.arguments(&node.args);
            }
            Expr::Test(node) => {
                self.expression(&node.expr);
                self.arguments(&node.args);
            }
            Expr::GetAttr(node) => self.expression(&node.expr),
            Expr::GetItem(node) => {
                self.expression(&node.expr);
                self.expression(&node.subscript_expr);
            }
            Expr::Call(node) => self.call(&node.expr, &node.args),
            Expr::List(node) => node.items.iter().for_each(|item| self.expression(item)),
            Expr::Tuple(node) => node.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(node) => node.values.iter().for_each(|item| self.expression(item)),
        }
    }
}

fn is_var(expr: &Expr<'_>, name: &str) -> bool {
    matches!(expr, Expr::Var(var) if var.id == name)
}

/// Whether `expr` is the variable, or its `key`, filtered or sliced or tested at most.
fn reaches(expr: &Expr<'_>, name: &str, key: Option<&str>) -> bool {
    match (expr, key) {
        (Expr::Filter(node), _) => node.expr.as_ref().is_some_and(|of| reaches(of, name, key)),
        (Expr::Test(node), _) => reaches(&node.expr, name, key),
        (Expr::Slice(node), _) => reaches(&node.expr, name, key),
        (Expr::GetAttr(node), Some(key)) => node.name == key && is_var(&node.expr, name),
        (Expr::GetItem(node), Some(key)) => {
            let is_key =
                matches!(&node.subscript_expr, Expr::Const(it) if it.value.as_str() == Some(key));
            is_key && is_var(&node.expr, name)
        }
        (_, None) => is_var(expr, name),
        _ => false,
    }
}
